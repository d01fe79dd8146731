"""Paying More Attention to Attention (Zagoruyko and Komodakis, ICLR 2017, eq. 2, activation-based, p = 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from distiller_zoo.base import Distiller, paired_stages, pool_to_smaller, unequal_stages
from helper.protocols import Batch, Context, Features, ModelSpec, Needs, Progress, Terms


def attention(f: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H*W]: mean over C of the squares, rows of unit length."""
    return F.normalize(f.pow(2).mean(1).flatten(1))


class AT(Distiller):
    """Sum over paired stages of mean (Q(f_s) - Q(f_t))^2, mean over B and H*W, the larger map pooled to the smaller.

    The paper takes the norm of the difference; the mean of its square is what the published weight (1000) goes with.
    """

    name = "at"

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        beta: float = 1000.0
        authors: ClassVar[Mapping[str, float]] = {"div": 0.0}

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        self.pairs = paired_stages(ctx.student.spec, ctx.teacher.spec, self.name)

    @classmethod
    def needs(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        stages_s, stages_t = zip(*paired_stages(student, teacher, cls.name), strict=True)
        return Needs(stages_s, stages_t)

    @classmethod
    def notes(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Sequence[str]:
        return unequal_stages(student, teacher, cls.name)

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        loss = s["logits"].new_zeros(())
        for stage_s, stage_t in self.pairs:
            f_s, f_t = pool_to_smaller(s[stage_s], t[stage_t])
            loss = loss + F.mse_loss(attention(f_s), attention(f_t))
        return {"at": loss}
