"""Improving Knowledge Distillation via Regularizing Feature Norm and Direction (Wang et al., 2023): KD++."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.option import not_negative, option, within
from core.protocols import Batch, Context, Features, Progress, Terms
from distiller_zoo._math import labels_of, summed_over_ranks, warmed_up
from distiller_zoo._stages import Dropout, refuse_single_samples
from distiller_zoo.base import PooledVectors

EPS = 1e-12  # below which a length counts as this much; the published code divides 0 by 0


def norm_and_direction(f_s: Tensor, f_t: Tensor, directions: Tensor) -> Tensor:
    """[B] 1 - f_s . e / max(|f_s|, |f_t|); f_s, f_t: [B, D], directions e: [B, D], of length 1.

    The gradient goes through |f_s| where that is the longer one.
    """
    longer = torch.maximum(f_s.norm(dim=1), f_t.norm(dim=1)).clamp_min(EPS)
    return 1 - (f_s * directions).sum(1) / longer


class KDPP(PooledVectors):
    """norm_and_direction() of pooled vectors, mean over B: rewards length up to the teacher's, then direction alone.

    e is the direction of the mean of the teacher's pooled vectors over the training images of the sample's class,
    computed once before training on augmented images. Where widths differ, BN, dropout and a linear layer map the
    student's vector. The weight of the logit KL rises from 0 over the first epochs. With another loss in place of the
    KL: dkd+kdpp -d 0, reviewkd+kdpp -d 0. Published weights (-d and --kdpp_nd): 3.5 and 2 for resnet32x4 ->
    resnet8x4; 1 and 2 for resnet56 -> resnet20; on ImageNet 2.5 and 1, or 4 and 1.
    """

    name = "kdpp"
    reads_labels = True

    @dataclass(frozen=True)
    class Config(PooledVectors.Config):
        beta: float = 1.0
        direction: float = option(
            2.0, "weight of the norm-and-direction term; published 0.5 to 4", "--kdpp_nd", check=not_negative
        )
        dropout: float = option(
            0.5, "dropout rate, if widths differ", "--kdpp_dropout", check=within(least=0, most=0.99)
        )
        warmup: int = option(
            20,
            "epochs over which the weight of the KL rises from 0; 0 for none; published 5 on ImageNet",
            check=not_negative,
        )
        authors: ClassVar[Mapping[str, float]] = {"div": 3.5}

    class_means: Tensor

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        (d_s,), (d_t,) = ctx.student.shapes["pooled"], ctx.teacher.shapes["pooled"]
        self.register_buffer("class_means", torch.zeros(ctx.num_classes, d_t))
        self.fc1: nn.Sequential | None = None
        if d_s != d_t:
            refuse_single_samples(ctx, self.name)
            self.fc1 = nn.Sequential(nn.BatchNorm1d(d_s), Dropout(cfg.dropout, ctx.rng), nn.Linear(d_s, d_t))
            nn.init.zeros_(self.fc1[2].bias)

    def prepare_teacher(self, seen: Callable[[], Iterable[tuple[Features, Batch]]]) -> None:
        sums, counts = torch.zeros_like(self.class_means), torch.zeros_like(self.class_means[:, 0])
        for t, batch in seen():
            labels = labels_of(batch)  # as in terms(): of a mixed image that of the larger share
            sums.index_add_(0, labels, t["pooled"])
            counts += torch.bincount(labels, minlength=len(counts))
        counts = summed_over_ranks(counts).clamp_min(1)
        self.class_means.copy_(summed_over_ranks(sums) / counts[:, None])

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        return {**s, "kdpp.vector": s["pooled"] if self.fc1 is None else self.fc1(s["pooled"])}, t

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        directions = F.normalize(self.class_means, eps=EPS)[labels_of(batch)]
        return {"kdpp": norm_and_direction(s["kdpp.vector"], t["pooled"], directions).mean()}

    def weights(self, progress: Progress) -> dict[str, float]:
        ramp = warmed_up(progress.epoch - 1, self.cfg.warmup)  # the published epochs begin at 0
        weights = super().weights(progress)
        return {**weights, "div": weights["div"] * ramp, "kdpp": self.cfg.beta * self.cfg.direction}
