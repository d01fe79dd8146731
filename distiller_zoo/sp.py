"""Similarity-Preserving Knowledge Distillation (Tung and Mori, ICCV 2019): ||G_t - G_s||_F^2 / B^2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from core.protocols import Batch, Context, Features, ModelSpec, Needs, Progress, Terms
from distiller_zoo._stages import last_stage
from distiller_zoo.base import Distiller


def similarity(f: Tensor) -> Tensor:
    """[B, ...] -> [B, B] inner products of the samples, rows of unit length."""
    flat = f.flatten(1)
    return F.normalize(flat @ flat.T)


class SP(Distiller):
    """Similarities of the samples of one batch, at the last stage map; mean over B^2."""

    name = "sp"
    relational = True

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        beta: float = 3000.0
        authors: ClassVar[Mapping[str, float]] = {"div": 0.0}

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        self.last_s, self.last_t = last_stage(ctx.student.spec, self.name), last_stage(ctx.teacher.spec, self.name)

    @classmethod
    def needs(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        return Needs((last_stage(student, cls.name),), (last_stage(teacher, cls.name),))

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        return {"sp": F.mse_loss(similarity(s[self.last_s]), similarity(t[self.last_t]))}  # [B, B]
