"""Similarity-Preserving Knowledge Distillation (Tung and Mori, ICCV 2019): ||G_t - G_s||_F^2 / B^2."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from core.protocols import Batch, Features, Progress, Terms
from distiller_zoo._math import rows
from distiller_zoo.base import LastMaps, WithoutKL


def similarity(f: Tensor) -> Tensor:
    """[B, ...] -> [B, B] inner products of the samples, rows of unit length."""
    flat = rows(f)
    return F.normalize(flat @ flat.T)


class SP(LastMaps):
    """Similarities of the samples of one batch, at the last stage map; mean over B^2."""

    name = "sp"
    relational = True

    @dataclass(frozen=True)
    class Config(WithoutKL):
        beta: float = 3000.0

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        return {"sp": F.mse_loss(similarity(s[self.last_s]), similarity(t[self.last_t]))}  # [B, B]
