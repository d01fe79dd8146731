"""Self-supervised KD using Singular Value Decomposition (Lee et al., ECCV 2018, eq. 5 to 8), k = 1 vector per map."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.protocols import Batch, Context, Features, Progress, Terms, UserError
from distiller_zoo._math import gram
from distiller_zoo._stages import require_equal_channels
from distiller_zoo.base import StagePairs, WithoutKL

CANDIDATES = 4  # singular vectors of the student among which the teacher's first one finds its counterpart
SOFTNESS = 1e-4  # below this share of the largest eigenvalue two eigenvalues count as equal
CHUNK = 2**23  # elements of one [b, C_l, C_l-1] comparison: 32 MB


def right_singular_vectors(f: Tensor, num: int) -> Tensor:
    """[B, C, H, W] -> [B, C, num]: the first right singular vectors of each sample's [H*W, C] matrix.

    From the eigenvectors of the smaller Gram matrix. Their derivative divides by differences of eigenvalues; where
    those vanish the quotient fades to 0, so equal or zero singular values give finite gradients. Vectors that belong
    to a singular value of 0 are 0. A decomposition does not determine signs, but the loss depends on them: here the
    components add up to a positive number (after a ReLU, none of them is then negative). torch waits for the
    device here, to check that the decomposition converged.
    """
    x = f.flatten(2)  # [B, C, M]
    wide = x.shape[1] > x.shape[2]
    products = gram(x.mT if wide else x)
    fixed = products.detach().nan_to_num(0.0, 0.0, 0.0)  # an infinite map shall reach the loss, not end in an exception
    values, basis = torch.linalg.eigh(fixed)
    values, basis = values.flip(1), basis.flip(2)  # largest first
    largest, first = values[:, :1, None], values[:, None, :num]
    gap = first - values[:, :, None]  # [B, M, num]
    pull = gap / (gap.pow(2) + (SOFTNESS * largest).pow(2) + 1e-30)
    # first-order perturbation: adds 0, and carries the gradient of the eigenvectors
    vectors = basis[..., :num] + basis @ (pull * (basis.mT @ ((products - fixed) @ basis[..., :num])))
    exists = (first > 100 * torch.finfo(f.dtype).eps * largest).to(f.dtype)  # [B, 1, num]
    unit = F.normalize((x @ vectors if wide else vectors) + (1 - exists), dim=1)
    return unit * exists * torch.where(unit.detach().sum(1, keepdim=True) < 0, -1.0, 1.0)


def aligned(v_s: Tensor, v_t: Tensor) -> Tensor:
    """[B, C, num] -> [B, C, 1]: the student's vector most parallel to the teacher's first one, turned to its side."""
    cosine = v_s.mT @ v_t  # [B, num, 1]
    size = cosine.detach().abs()
    return v_s @ (cosine.detach().sign() * (size == size.amax(1, keepdim=True)))


def relations(v: Tensor, before: Tensor) -> Tensor:
    """[b, C, 1] and [b, C', 1] -> [b, C, C'] radial basis function exp(-(v_i - before_j)^2 / 8) of pairs of channels,
    minus 1: only differences of it count, and near 1 it would round them away."""
    left = torch.cat([v, v.pow(2), torch.ones_like(v)], 2)
    right = torch.cat([2 * before, -torch.ones_like(before), -before.pow(2)], 2) / 8
    return (left @ right.mT).expm1()


class KDSVD(StagePairs):
    """Relations between the singular vectors of consecutive stages: squared differences, summed over channel pairs and
    stages, mean over B. With one vector its normalised singular value, by which the paper scales it, is 1.
    """

    name = "kdsvd"

    @dataclass(frozen=True)
    class Config(WithoutKL):
        beta: float = 1.0

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        if len(self.pairs) < 2:
            raise UserError(
                f"kdsvd compares consecutive stages; {ctx.student.spec.name} and {ctx.teacher.spec.name} "
                "have one stage in common, but two are needed"
            )
        require_equal_channels(ctx.student, ctx.teacher, self.pairs, self.name)

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        vectors = []  # [B, C, 1] of student and teacher, stage after stage
        for stage_s, stage_t in self.pairs:
            v_t = right_singular_vectors(t[stage_t], 1)
            vectors.append((aligned(right_singular_vectors(s[stage_s], CANDIDATES), v_t), v_t))
        loss = s["logits"].new_zeros(())
        for before, now in zip(vectors[:-1], vectors[1:], strict=True):
            size = max(1, CHUNK // (now[0].shape[1] * before[0].shape[1]))
            parts = zip(*(v.split(size) for v in (*now, *before)), strict=True)
            for now_s, now_t, before_s, before_t in parts:
                loss = loss + F.mse_loss(relations(now_s, before_s), relations(now_t, before_t), reduction="sum")
        return {"kdsvd": loss / len(vectors[0][0])}
