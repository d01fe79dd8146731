"""Neuron Selectivity Transfer (Huang and Wang, 2017, eq. 5): squared MMD of the channels, kernel k(a, b) = (a.b)^2."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from core.protocols import Batch, Features, Progress, Terms
from distiller_zoo._math import gram, pool_to_smaller
from distiller_zoo.base import StagePairs, WithoutKL

EPS = 1e-12  # of a length


def mean_kernels(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """K(a, a), K(b, b) and K(a, b); a: [B, C_a, M], b: [B, C_b, M]. K: mean over B and channel pairs of (a_i . b_j)^2,
    every channel scaled to unit length.

    The squares of a b^T add up to the inner product of a^T a and b^T b: the smaller of [C_a, C_b] and [M, M] is made.
    """
    if a.shape[1] * b.shape[1] <= a.shape[2] ** 2:
        products = gram(a), gram(b), (b @ a.mT).mT  # not a @ b.mT: the gradient of a keeps the memory order of a
        square_a, square_b = (p.diagonal(dim1=1, dim2=2).clamp_min(EPS**2) for p in products[:2])
        squares = (square_a, square_a), (square_b, square_b), (square_a, square_b)
        kernels = (p / x[:, :, None] * (p / y[:, None]) for p, (x, y) in zip(products, squares, strict=True))
        k_aa, k_bb, k_ab = (k.mean() for k in kernels)
        return k_aa, k_bb, k_ab
    means = [gram(F.normalize(x, dim=2, eps=EPS).mT) / x.shape[1] for x in (a, b)]  # [B, M, M] over channels
    k_aa, k_bb, k_ab = ((x * y).sum((1, 2)).mean() for x, y in (means[:1] * 2, means[1:] * 2, means))
    return k_aa, k_bb, k_ab


class NST(StagePairs):
    """K(t, t) + K(s, s) - 2 K(s, t), summed over paired stages; the larger map pooled to the smaller first.

    K(t, t) holds no parameter of the student: it shifts the reported loss and nothing else.
    """

    name = "nst"

    @dataclass(frozen=True)
    class Config(WithoutKL):
        beta: float = 50.0

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        loss = s["logits"].new_zeros(())
        for stage_s, stage_t in self.pairs:
            a, b = (f.flatten(2) for f in pool_to_smaller(s[stage_s], t[stage_t]))
            k_ss, k_tt, k_st = mean_kernels(a, b)
            loss = loss + k_tt + k_ss - 2 * k_st
        return {"nst": loss}
