"""Correlation Congruence (Peng et al., ICCV 2019), as RepDistiller has it: mean over b of <|d_b|, |d_b+1|>."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from core.option import option, within
from core.protocols import Batch, Context, Features, Progress, Terms
from distiller_zoo.base import PooledVectors, WithoutKL


class CC(PooledVectors):
    """d_b = e_s(b) - e_t(b), the difference of two learned linear embeddings of the pooled features; neighbours in the
    batch, mean over its B - 1 pairs.

    The paper matches B x B correlation matrices; the published number 72.97 and its weight 0.02 go with this form.
    """

    name = "cc"
    relational = True

    @dataclass(frozen=True)
    class Config(WithoutKL):
        beta: float = 0.02
        feat_dim: int = option(128, "width of the embeddings", "--feat_dim", check=within(least=1, most=2**20))

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        self.embed_s = nn.Linear(ctx.student.shapes["pooled"][0], cfg.feat_dim)
        self.embed_t = nn.Linear(ctx.teacher.shapes["pooled"][0], cfg.feat_dim)

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        return {**s, "cc.embedded": self.embed_s(s["pooled"])}, {**t, "cc.embedded": self.embed_t(t["pooled"])}

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        delta = (s["cc.embedded"] - t["cc.embedded"]).abs()  # [B, D]
        neighbours = (delta[:-1] * delta[1:]).sum(1)
        return {"cc": neighbours.sum() / max(len(neighbours), 1)}  # a batch of one has no pair
