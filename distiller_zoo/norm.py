"""NORM: Knowledge Distillation via N-to-One Representation Matching (Liu et al., ICLR 2023): N copies of the map."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from core.option import option, within
from core.protocols import Batch, Context, Features, Progress, Side, Terms, UserError
from distiller_zoo._stages import last_stage, shown
from distiller_zoo.base import Deployment, LastMaps

SCALE, EPS = 2.5, 1e-7  # of levelled logits
RAMP = (0.1, 0.5, 1.0, 0.5, 0.1)  # the term's weight between the epochs of --norm_ramp


def levelled(logits: Tensor) -> Tensor:
    """[B, K]: 2.5 times the layer norm of every row, without parameters."""
    return SCALE * F.layer_norm(logits, logits.shape[1:], eps=EPS)


class Widened(nn.Module):
    """The layers inside the student: map [B, C, H, W] -> the map plus a detour over N * C_t channels, and what is
    expanded there."""

    def __init__(self, channels: int, wide: int):
        super().__init__()
        self.layer31 = nn.Sequential(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide))
        self.layer32 = nn.Sequential(nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels))
        for conv in (self.layer31[0], self.layer32[0]):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, Features]:
        expanded = self.layer31(x)
        return self.layer32(expanded) + x, {"norm.expanded": expanded}


class Levelled(Deployment):
    """The student with the layers inside it; its logits levelled."""

    def __init__(self, cfg: Any, student: Side, wide: int):
        super().__init__(NORM.name, cfg, {})
        last = last_stage(student.spec, NORM.name)
        self.widened = Widened(student.shapes[last][0], wide)
        if student.net is not None:
            student.net.insert(last, self.widened)

    def forward(self, s: Features) -> Features:
        return {**s, "logits": levelled(s["logits"])}

    def entries(self) -> dict[str, dict[str, Tensor]]:
        return {"proj": self.widened.state_dict()}

    def load_entries(self, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        self.widened.load_state_dict(entries["proj"])


class NORM(LastMaps):
    """N * mean over B, C, H, W of (E - [F_t, ..., F_t])^2: N copies of the teacher's last map against the expanded one.

    The student gets two 1x1 convolutions behind its last stage: E = BN(conv(F_s)) with N * C_t channels, and
    F_s + BN(conv(E)) is what its classifier pools; both are deployed. The larger map is max-pooled to the smaller. Its
    logits and the teacher's are levelled, 2.5 * LayerNorm(z), for every term and for what is reported; that changes no
    prediction. With N = 1 the published code leaves the layers out; here they stay. On ImageNet the third weight of the
    ramp was 0.9.
    """

    name = "norm"

    @dataclass(frozen=True)
    class Config(LastMaps.Config):
        cls: float = 0.1
        div: float = 0.0
        beta: float = 1.0
        copies: int = option(8, "copies N of the teacher's map", "--norm_copies", check=within(least=1))
        ramp: tuple[int, ...] = option(
            (10, 20, 180, 210),
            f"epochs at which the term's weight changes between {', '.join(map(str, RAMP))}; published 5 15 60 80 on "
            "ImageNet",
            "--norm_ramp",
        )
        authors: ClassVar[Mapping[str, float]] = {}

        def __post_init__(self) -> None:
            super().__post_init__()
            if len(self.ramp) != len(RAMP) - 1 or list(self.ramp) != sorted(self.ramp):
                given = " ".join(map(str, self.ramp))
                raise UserError(f"--norm_ramp {given} must be {len(RAMP) - 1} epochs in order, such as 10 20 180 210")

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        if ctx.student.spec.taps[self.last_s].per_frame:
            raise UserError(
                f"norm inserts layers into the student, but {ctx.student.spec.name} reads the frames of a clip one by "
                "one: choose a network of images"
            )
        for side, last in ((ctx.student, self.last_s), (ctx.teacher, self.last_t)):
            if len(side.shapes[last]) != 3:
                raise UserError(
                    f"norm reads maps [C, H, W], but {last} of {side.spec.name} is {shown(side.shapes[last])}: choose "
                    "a convolutional network"
                )
        self.levelled = Levelled(cfg, ctx.student, cfg.copies * ctx.teacher.shapes[self.last_t][0])

    def deployment(self) -> Deployment:
        return self.levelled

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        return s, {**t, "logits": levelled(t["logits"])} if "logits" in t else t

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        expanded, f_t = s["norm.expanded"], t[self.last_t]
        smaller = min(expanded.shape[2:], f_t.shape[2:])
        expanded, f_t = (x if x.shape[2:] == smaller else F.adaptive_max_pool2d(x, smaller) for x in (expanded, f_t))
        # channels last, so that the gradient has the memory order of the map
        copies = expanded.permute(0, 2, 3, 1).unflatten(3, (self.cfg.copies, -1))  # [B, H, W, N, C_t]
        target = f_t.permute(0, 2, 3, 1).unsqueeze(3).expand_as(copies)
        return {"norm": self.cfg.copies * F.mse_loss(copies, target)}

    def weights(self, progress: Progress) -> dict[str, float]:
        ramp = RAMP[bisect(self.cfg.ramp, progress.epoch - 1)]
        return {**super().weights(progress), "norm": self.cfg.beta * ramp}
