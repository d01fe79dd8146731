"""Similarity-Preserving Knowledge Distillation (Tung and Mori, ICCV 2019): ||G_t - G_s||_F^2 / B^2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from core.protocols import Batch, Features, Progress, Terms
from distiller_zoo._math import rows
from distiller_zoo.base import LastMaps


def similarity(f: Tensor) -> Tensor:
    """[B, ...] -> [B, B] inner products of the samples, rows of unit length."""
    flat = rows(f)
    return F.normalize(flat @ flat.T)


class SP(LastMaps):
    """Similarities of the samples of one batch, at the last stage map; mean over B^2."""

    name = "sp"
    relational = True

    @dataclass(frozen=True)
    class Config(LastMaps.Config):
        beta: float = 3000.0
        authors: ClassVar[Mapping[str, float]] = {"div": 0.0}

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        return {"sp": F.mse_loss(similarity(s[self.last_s]), similarity(t[self.last_t]))}  # [B, B]
