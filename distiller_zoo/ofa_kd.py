"""One-for-All: Bridge the Gap Between Heterogeneous Architectures in KD (Hao et al., NeurIPS 2023, OFA loss)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.option import option, within
from core.protocols import Batch, Context, Features, ModelSpec, Needs, Progress, Terms, UserError
from distiller_zoo._math import labels_of
from distiller_zoo.base import LogitLoss


class Exit(nn.Module):
    """Logits from one stage map: it is halved and widened as often as deeper stages follow, then pooled and classified.

    channels: of this stage and all deeper ones.
    """

    def __init__(self, channels: list[int], num_classes: int):
        super().__init__()
        self.down = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(c_in, c_in, 3, stride=2, padding=1, groups=c_in, bias=False),
                    nn.Conv2d(c_in, c_out, 1, bias=False),
                    nn.BatchNorm2d(c_out),
                    nn.ReLU(),
                )
                for c_in, c_out in zip(channels[:-1], channels[1:], strict=True)
            )
        )
        self.classify = nn.Linear(channels[-1], num_classes)

    def forward(self, f: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, K]."""
        return self.classify(self.down(f).mean((2, 3)))


class OFAKD(LogitLoss):
    """-sum over classes of ((p_t + 1_y)^eps - 1_y) log p_s, mean over B; summed over the stages' exits and the logits.

    1_y is 1 at the label. Exits are trained by this term only and dropped afterwards. They are depthwise separable,
    with the student's own widths; the paper's differ between its student families.
    """

    name = "ofa_kd"
    reads_labels = True

    @dataclass(frozen=True)
    class Config(LogitLoss.Config):
        beta: float = 1.0
        eps: float = option(
            1.0, "exponent that enhances the label; published 1 to 1.5", "--ofa_kd_eps", check=within(least=1)
        )

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        self.stages = ctx.student.spec.stages
        channels = [ctx.student.shapes[stage][0] for stage in self.stages]
        self.exits = nn.ModuleList(Exit(channels[i:], ctx.num_classes) for i in range(len(channels)))

    @classmethod
    def needs(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        if not student.stages:
            raise UserError(
                f"ofa_kd adds exits to the student's stage maps, but {student.name} has none: choose a CNN as student"
            )
        if cfg.frame_logits:
            raise UserError("ofa_kd's exits score clips, not frames: leave --frame_logits out")
        return Needs(student.stages)

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        added = {f"ofa_kd.{stage}": leave(s[stage]) for leave, stage in zip(self.exits, self.stages, strict=True)}
        return {**s, **added}, t

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        p_t = self.comparable(t["logits"]).softmax(1)  # [B, K]
        label = labels_of(batch)[:, None] == torch.arange(p_t.shape[1], device=p_t.device)
        enhanced = (p_t + label.to(p_t.dtype)).pow(self.cfg.eps) - label.to(p_t.dtype)
        rows = p_t.new_zeros(len(p_t))
        for name in ("logits", *(f"ofa_kd.{stage}" for stage in self.stages)):
            log_p_s = F.log_softmax(self.comparable(s[name]), 1)
            rows = rows - (enhanced * log_p_s).sum(1)
        return {"ofa_kd": self.over_rows(rows, s["logits"], t["logits"])}
