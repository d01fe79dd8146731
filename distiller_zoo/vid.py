"""Variational Information Distillation (Ahn et al., CVPR 2019): mean 0.5 * ((mu(f_s) - f_t)^2 / v + log v)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.protocols import Batch, Context, Features, Progress, Terms
from distiller_zoo._math import pool_to_smaller, squared_error
from distiller_zoo.base import StagePairs, WithoutKL

MIN_VARIANCE = 1e-5
INITIAL_VARIANCE = 5.0


class Gaussian(nn.Module):
    """q(f_t | f_s): a mean regressed from the student's map, a variance learned per channel."""

    def __init__(self, c_s: int, c_t: int):
        super().__init__()
        self.regressor = nn.Sequential(
            nn.Conv2d(c_s, c_t, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(c_t, c_t, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(c_t, c_t, 1, bias=False),
        )
        # the inverse of softplus(log_scale) + MIN_VARIANCE
        self.log_scale = nn.Parameter(torch.full((c_t,), math.log(math.expm1(INITIAL_VARIANCE - MIN_VARIANCE))))

    def forward(self, f_s: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C_s, H, W] -> mean [B, C_t, H, W] and variance [C_t]."""
        return self.regressor(f_s), F.softplus(self.log_scale) + MIN_VARIANCE


class VID(StagePairs):
    """Sum over paired stages of the negative log-likelihood (without its constant), mean over B, C, H, W."""

    name = "vid"

    @dataclass(frozen=True)
    class Config(WithoutKL):
        beta: float = 1.0

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        self.layers = nn.ModuleList(Gaussian(ctx.student.shapes[a][0], ctx.teacher.shapes[b][0]) for a, b in self.pairs)

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        added_s, added_t = {}, {}
        for layer, (stage_s, stage_t) in zip(self.layers, self.pairs, strict=True):
            f_s, added_t[f"vid.target.{stage_t}"] = pool_to_smaller(s[stage_s], t[stage_t])
            added_s[f"vid.mean.{stage_s}"], added_s[f"vid.variance.{stage_s}"] = layer(f_s)
        return {**s, **added_s}, {**t, **added_t}

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        loss = s["logits"].new_zeros(())
        for stage_s, stage_t in self.pairs:
            mean, variance = s[f"vid.mean.{stage_s}"], s[f"vid.variance.{stage_s}"]
            error = squared_error(mean, t[f"vid.target.{stage_t}"], "none").mean((0, 2, 3))  # [C_t]
            loss = loss + 0.5 * (error / variance + variance.log()).mean()
        return {"vid": loss}
