"""Understanding the Role of the Projector in Knowledge Distillation (Miles and Mikolajczyk, AAAI 2024): LogSum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from core.option import option, within
from core.protocols import Batch, Context, Features, Progress, Terms
from distiller_zoo._stages import refuse_single_samples
from distiller_zoo.base import PooledVectors

EPS = 1e-4  # of both batch norms


class SRD(PooledVectors):
    """2 log sum |BN(W f_s) - BN(f_t)|^e over B and D, next to the logit KL. f: pooled vectors [B, D].

    Both batch norms (eps 1e-4, as released) have no parameters and use the statistics of the batch; W has no bias,
    which they would remove. Weights, exponent and a logit KL at temperature 1 (--protocol authors) are those released
    for ImageNet, resnet34 -> resnet18.
    """

    name = "srd"

    @dataclass(frozen=True)
    class Config(PooledVectors.Config):
        beta: float = 1.0
        exponent: float = option(
            4.0, "power of the differences inside the logarithm", "--srd_exponent", check=within(least=1)
        )
        authors: ClassVar[Mapping[str, float]] = {"kd_T": 1.0}

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        refuse_single_samples(ctx, self.name)
        (d_s,), (d_t,) = ctx.student.shapes["pooled"], ctx.teacher.shapes["pooled"]
        self.project = nn.Linear(d_s, d_t, bias=False)
        self.norm = nn.BatchNorm1d(d_t, eps=EPS, affine=False, track_running_stats=False)

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        return (
            {**s, "srd.projected": self.norm(self.project(s["pooled"]))},
            {**t, "srd.target": self.norm(t["pooled"])},
        )

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        distance = (s["srd.projected"] - t["srd.target"]).abs().pow(self.cfg.exponent).sum()
        # identical features would otherwise end in the logarithm of 0
        return {"srd": 2 * distance.clamp_min(torch.finfo(distance.dtype).tiny).log()}
