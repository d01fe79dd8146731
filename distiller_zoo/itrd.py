"""Information Theoretic Representation Distillation (Miles et al., BMVC 2022): correlation and mutual terms."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from core.option import not_negative, option, positive, within
from core.protocols import Batch, Context, Features, Progress, Terms
from distiller_zoo._stages import refuse_single_samples
from distiller_zoo.base import PooledVectors, WithoutKL

EPS = 1e-6  # on the deviation of a dimension; the published code divides 0 by 0 where a channel is constant


def standardised_columns(x: Tensor) -> Tensor:
    """[B, D]: every dimension minus its mean over the batch, over its unbiased standard deviation plus EPS."""
    deviation = x.var(0).clamp_min(EPS**2).sqrt()  # the gradient of a root at 0 is infinite
    return (x - x.mean(0)) / (deviation + EPS)


def correlation(x: Tensor, f_t: Tensor, alpha: float) -> Tensor:
    """log2 sum_j |v_j - 1|^(2 alpha), v_j = (1 / B) sum_b x_bj f_bj of the standardised vectors [B, D]."""
    v = (standardised_columns(x) * standardised_columns(f_t)).mean(0)  # [D]
    return (v - 1).abs().pow(2 * alpha).sum().log2()


def mutual(x: Tensor, f_t: Tensor) -> Tensor:
    """sum G_s^2 - sum G_st^2 of the Gram matrices [B, B] of rows of unit length, each divided by its trace B.

    G_s = X X^T, G_st = G_s * (T T^T) element by element. The mutual information of order 2, without the logarithm.
    """
    x, f_t = F.normalize(x), F.normalize(f_t)
    gram_s = x @ x.T / len(x)
    gram_st = gram_s * (f_t @ f_t.T)
    return gram_s.pow(2).sum() - gram_st.pow(2).sum()


class ITRD(PooledVectors):
    """correlation_weight * log2 sum |v - 1|^(2 alpha) + mutual_weight * (sum G_s^2 - sum G_st^2), of pooled vectors.

    One linear layer maps the student's vector to the teacher's width. The correlation term always reads the mapped
    vector, the mutual term only where the widths differ, as published. The correlation term may be negative.
    """

    name = "itrd"

    @dataclass(frozen=True)
    class Config(WithoutKL):
        beta: float = 1.0
        correlation_weight: float = option(2.0, "weight of the correlation term", "--itrd_correlation", check=positive)
        mutual_weight: float = option(
            1.0,
            "weight of the mutual-information term; 0.05 is the default of the published code",
            "--itrd_mutual",
            check=not_negative,
        )
        alpha: float = option(
            1.01,
            "half the exponent of the correlation term; 1.5 is the default of the published code",
            "--itrd_alpha",
            check=within(least=0.5),
        )

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        refuse_single_samples(ctx, self.name)
        (d_s,), (d_t,) = ctx.student.shapes["pooled"], ctx.teacher.shapes["pooled"]
        self.embed = nn.Linear(d_s, d_t)
        self.same_width = d_s == d_t

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        embedded = self.embed(s["pooled"])
        return {**s, "itrd.embedded": embedded, "itrd.compared": s["pooled"] if self.same_width else embedded}, t

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        loss = self.cfg.correlation_weight * correlation(s["itrd.embedded"], t["pooled"], self.cfg.alpha)
        return {"itrd": loss + self.cfg.mutual_weight * mutual(s["itrd.compared"], t["pooled"])}
