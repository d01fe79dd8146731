"""Relational Knowledge Distillation (Park et al., CVPR 2019, eq. 5 and 8): 25 * distances + 50 * angles, Huber loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

from core.option import not_negative, option
from core.protocols import Batch, Features, Progress, Terms
from distiller_zoo._math import angles, distances
from distiller_zoo.base import PooledVectors, WithoutKL


class RKD(PooledVectors):
    """Relations among the pooled features of a batch: smooth L1 (beta 1), mean over B^2 distances and B^3 angles."""

    name = "rkd"
    relational = True

    @dataclass(frozen=True)
    class Config(WithoutKL):
        beta: float = 1.0
        distance: float = option(25.0, "weight of the distances within the term", check=not_negative)
        angle: float = option(50.0, "weight of the angles within the term", check=not_negative)

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        e_s, e_t = s["pooled"], t["pooled"]
        loss_d = F.smooth_l1_loss(distances(e_s), distances(e_t))
        loss_a = F.smooth_l1_loss(angles(e_s), angles(e_t))
        return {"rkd": self.cfg.distance * loss_d + self.cfg.angle * loss_a}
