"""Neuron Selectivity Transfer (Huang and Wang, 2017, eq. 5): squared MMD of the channels, kernel k(a, b) = (a.b)^2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from core.protocols import Batch, Features, Progress, Terms
from distiller_zoo._math import pool_to_smaller
from distiller_zoo.base import Distiller, StagePairs


def channels(f: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C, H*W], every channel of unit length."""
    return F.normalize(f.flatten(2), dim=2)


def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
    """Mean over B and channel pairs of (a_i . b_j)^2; a: [B, C_a, M], b: [B, C_b, M].

    The squares of a b^T add up to the inner product of a^T a and b^T b: the smaller of [C_a, C_b] and [M, M] is made.
    """
    num_pairs = a.shape[0] * a.shape[1] * b.shape[1]
    if a.shape[1] * b.shape[1] <= a.shape[2] ** 2:
        return (a @ b.mT).pow(2).sum() / num_pairs
    return ((a.mT @ a) * (b.mT @ b)).sum() / num_pairs


class NST(StagePairs):
    """K(t, t) + K(s, s) - 2 K(s, t), summed over paired stages; the larger map pooled to the smaller first.

    K(t, t) holds no parameter of the student: it shifts the reported loss and nothing else.
    """

    name = "nst"

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        beta: float = 50.0
        authors: ClassVar[Mapping[str, float]] = {"div": 0.0}

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        loss = s["logits"].new_zeros(())
        for stage_s, stage_t in self.pairs:
            a, b = (channels(f) for f in pool_to_smaller(s[stage_s], t[stage_t]))
            loss = loss + mean_kernel(b, b) + mean_kernel(a, a) - 2 * mean_kernel(a, b)
        return {"nst": loss}
