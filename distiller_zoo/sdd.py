"""Scaled Decoupled Distillation (Wei et al., CVPR 2024): a logit loss on every region of the last map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.option import not_negative, option, positive
from core.protocols import Batch, Context, Features, ModelSpec, Needs, Progress, Terms, UserError
from distiller_zoo._math import kl_rows, labels_of, non_target, warmed_up
from distiller_zoo._rows import dkd_rows, soft_cross_entropy, target_rows
from distiller_zoo._stages import classified_map, linear_head
from distiller_zoo.base import LastMaps

FINEST = 4  # cells along each side; coarser regions are means of these


def region_means(f: Tensor, scales: Sequence[int]) -> Tensor:
    """[B, C, H, W] -> [B, N, C]: means over n x n regions for every n of scales, in rows.

    A map smaller than FINEST x FINEST is replicated, as published.
    """
    cells = F.adaptive_avg_pool2d(f, FINEST)
    return torch.cat([F.avg_pool2d(cells, FINEST // n).flatten(2) for n in scales], 2).mT


class SDD(LastMaps):
    """Mean over the B samples and N regions of u * l(z_s, z_t, y), where l is the row of kd, dkd or nkd.

    z: each network's classifier on the region's mean; the student's learns from this term. u is 2 where the teacher is
    right about the region and wrong about the whole map, or the reverse, and 1 elsewhere. --sdd_scales 1 is the base
    method alone; published: 1 2 for networks of one family, 1 2 4 for others. dkd and nkd were published with
    -c 1 -b 1 --sdd_warmup 20. The published code for nkd leaves the label among the non-target classes, at gamma 8 and
    T 4, and its published numbers depend on that: --sdd_as_published.
    """

    name = "sdd"
    tap_of = staticmethod(classified_map)
    reads_labels = True
    reads_logits = True  # through the classifier's weights
    weighs_rows = True

    @dataclass(frozen=True)
    class Config(LastMaps.Config):
        cls: float = 0.1
        div: float = 0.0
        beta: float = 0.9
        base: str = option("kd", "the loss on every region", "--sdd_base", choices=("kd", "dkd", "nkd"))
        scales: tuple[int, ...] = option((1, 2), "regions along each side: 1 and any of 2 and 4", "--sdd_scales")
        temperature: float = option(4.0, "temperature; published 1 on ImageNet", "--sdd_T", check=positive)
        tckd: float = option(1.0, "weight of the target-class part, with dkd", "--sdd_alpha", check=not_negative)
        nckd: float = option(
            8.0, "weight of the non-target part, with dkd; published 2 to 8", "--sdd_beta", check=not_negative
        )
        gamma: float = option(8.0, "weight of the non-target part, with nkd", "--sdd_gamma", check=not_negative)
        warmup: int = option(
            0, "epochs over which the weight rises from 0; 0 for none", "--sdd_warmup", check=not_negative
        )
        as_published: bool = option(
            False, "with nkd: keep the label among the non-target classes, as the published code does"
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if 1 not in self.scales or not set(self.scales) <= {1, 2, 4} or len(set(self.scales)) < len(self.scales):
                given = " ".join(map(str, self.scales))
                raise UserError(f"--sdd_scales {given} must be distinct numbers from 1, 2 and 4, including 1")

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        self.student_head = linear_head(ctx.student, self.last_s, self.name)  # the student's own, not a copy
        self.teacher_head = linear_head(ctx.teacher, self.last_t, self.name).requires_grad_(False)
        self.scales = sorted(cfg.scales)  # the whole map first

    @classmethod
    def needs(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        if cfg.frame_logits:
            raise UserError("sdd scores regions of clips, not frames: leave --frame_logits out")
        return super().needs(cfg, student, teacher)

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        z_s = self.student_head(region_means(s[self.last_s], self.scales))  # [B, N, K]
        z_t = self.teacher_head(region_means(t[self.last_t], self.scales))
        return {**s, "sdd.logits": z_s}, {**t, "sdd.logits": z_t}

    def _rows(self, z_s: Tensor, z_t: Tensor, labels: Tensor) -> Tensor:
        """[R] the base method's loss."""
        temperature = self.cfg.temperature
        if self.cfg.base == "kd":
            return kl_rows(z_s, z_t, temperature)
        if self.cfg.base == "dkd":
            return dkd_rows(z_s, z_t, labels, (self.cfg.tckd, self.cfg.nckd), temperature)
        others = (z_s, z_t) if self.cfg.as_published else (non_target(z_s, labels), non_target(z_t, labels))
        return target_rows(z_s, z_t, labels) + self.cfg.gamma * soft_cross_entropy(*others, temperature)

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        labels = labels_of(batch)[:, None]  # [B, 1]
        right = t["sdd.logits"].argmax(2) == labels  # [B, N]
        u = 1.0 + (right != right[:, :1])
        z_s, z_t = s["sdd.logits"].flatten(0, 1), t["sdd.logits"].flatten(0, 1)
        rows = self._rows(self.comparable(z_s), self.comparable(z_t), labels.expand_as(right).flatten())
        return {"sdd": self.over_rows(u.flatten() * rows, z_s, z_t)}

    def weights(self, progress: Progress) -> dict[str, float]:
        return {**super().weights(progress), "sdd": self.cfg.beta * warmed_up(progress.epoch, self.cfg.warmup)}
