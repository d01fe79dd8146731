"""Local Dense Logit Relations for Enhanced Knowledge Distillation (Xu et al., ICCV 2025): pairs, whole and rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.option import not_negative, option, positive, within
from core.protocols import Batch, Context, Features, ModelSpec, Progress, Terms, UserError
from distiller_zoo._math import kl_rows
from distiller_zoo.base import LogitLoss


def pair_weights(top: int) -> Tensor:
    """[d, d] omega_ij = 2 exp(-0.05 (i + j)) / (1.5 + j - i) for ranks i < j, counted from 1; 0 elsewhere."""
    omega = torch.zeros(top, top)
    for i in range(1, top + 1):
        for j in range(i + 1, top + 1):
            omega[i - 1, j - 1] = 2 * math.exp(-0.05 * (i + j)) / (1.5 + j - i)
    return omega


def pairs_kl(z_s: Tensor, z_t: Tensor, temperature: float) -> Tensor:
    """[B, d] -> [B, d, d] T^2 KL of the softmax over the two classes i and j."""

    def log_p(z: Tensor) -> Tensor:
        margin = (z[:, :, None] - z[:, None]) / temperature
        return F.logsigmoid(torch.stack([margin, -margin], -1))

    return F.kl_div(log_p(z_s), log_p(z_t), reduction="none", log_target=True).sum(-1) * temperature**2


class LDRLD(LogitLoss):
    """alpha * (sum over pairs of omega_ij KL_ij + KL of the d classes) + beta * KL of the others, mean over B.

    The d classes are those of the student's largest logits, T^2 KL at temperature T everywhere. The published code
    divides the first part by its number of terms, d (d - 1) / 2 + 1, and counts the d classes as one pair if d = 2:
    --ldrld_as_published. alpha and beta were published for that code; without it alpha is effectively 22 times as
    large. The loss jumps where the student's order changes.
    """

    name = "ldrld"

    @dataclass(frozen=True)
    class Config(LogitLoss.Config):
        beta: float = 1.0
        local: float = option(
            10.5, "weight of the pairs and the whole of the top classes", "--ldrld_alpha", check=not_negative
        )
        rest: float = option(7.0, "weight of the other classes", "--ldrld_beta", check=not_negative)
        top: int = option(7, "number of top classes", "--ldrld_d", check=within(least=2))
        temperature: float = option(4.0, "temperature of every softmax", "--ldrld_T", check=positive)
        as_published: bool = option(
            False, "average pairs and whole, as the published code does, instead of the paper's sum"
        )

    omega: Tensor

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        if cfg.top >= ctx.num_classes:
            raise UserError(f"--ldrld_d {cfg.top} must be below the number of classes, {ctx.num_classes}")
        self.register_buffer("omega", pair_weights(cfg.top), persistent=False)

    @classmethod
    def notes(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Sequence[str]:
        if cfg.as_published:
            return ()
        times = cfg.top * (cfg.top - 1) // 2 + 1
        return (
            f"ldrld sums over pairs, as the paper does; its weights were published for the mean, {times} times less: "
            f"if the student does not learn, pass --ldrld_as_published or divide --ldrld_alpha by {times}",
        )

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        z_s, z_t, temperature = self.comparable(s["logits"]), self.comparable(t["logits"]), self.cfg.temperature
        order = z_s.detach().argsort(1, descending=True)
        (top_s, rest_s), (top_t, rest_t) = (
            z.gather(1, order).split([self.cfg.top, z.shape[1] - self.cfg.top], 1) for z in (z_s, z_t)
        )
        pairs = (pairs_kl(top_s, top_t, temperature) * self.omega).sum((1, 2))
        whole = kl_rows(top_s, top_t, temperature)
        if self.cfg.as_published:
            whole = whole * self.omega[0, 1] if self.cfg.top == 2 else whole
            local = (pairs + whole) / (self.cfg.top * (self.cfg.top - 1) / 2 + 1)
        else:
            local = pairs + whole
        rows = self.cfg.local * local + self.cfg.rest * kl_rows(rest_s, rest_t, temperature)
        return {"ldrld": self.over_rows(rows, s["logits"], t["logits"])}
