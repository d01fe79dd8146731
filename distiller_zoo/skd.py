"""Streamlined Knowledge Distillation (authors of HyunJunSik/StreamLined, CVPR 2026): KL and direction of logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.option import not_negative, option, positive
from core.protocols import Batch, Features, Progress, Terms
from distiller_zoo._math import kl_rows
from distiller_zoo.base import LogitLoss

EPS = 1e-12  # under the root, whose gradient is infinite where both networks agree


def direction(z_s: Tensor, z_t: Tensor, ridge: float) -> Tensor:
    """[B] Mahalanobis length of each row of Delta = (A_s A_s^T - A_t A_t^T) / K, where A are logits of unit length.

    Its covariance is that of the rows of Delta, unbiased, plus ridge * identity; the rows are not centred, and the
    gradient passes through the covariance too. z_s, z_t: [B, K].
    """
    a_s, a_t = F.normalize(z_s, dim=1), F.normalize(z_t, dim=1)
    delta = (a_s @ a_s.T - a_t @ a_t.T) / z_s.shape[1]  # [B, B]
    centred = delta - delta.mean(0)
    identity = torch.eye(len(delta), dtype=delta.dtype, device=delta.device)
    covariance = centred.T @ centred / max(len(delta) - 1, 1) + ridge * identity
    factor, _ = torch.linalg.cholesky_ex(covariance)  # unchecked: a check would wait for the device
    return ((delta * torch.cholesky_solve(delta.T, factor).T).sum(1) + EPS).sqrt()


class SKD(LogitLoss):
    """mu_1 T^2 KL + mu_2 direction(), mean over B.

    mu_1 and mu_2 are the means of two masks at a median, which the published code multiplies with means over the whole
    batch: for even B and K both are the constant 1/2, the default here. The direction depends on the rows of one
    process and is small: 0.005 where the KL is 5. The published recipe trains on a weak and a strong copy of every
    image, 100 000 images an epoch, at learning rate 0.1, with teachers of its own.
    """

    name = "skd"

    @dataclass(frozen=True)
    class Config(LogitLoss.Config):
        cls: float = 0.5
        beta: float = 0.5
        kl: float = option(0.5, "weight mu_1 of the KL", "--skd_kl", check=not_negative)
        direction: float = option(0.5, "weight mu_2 of the direction", "--skd_direction", check=not_negative)
        ridge: float = option(0.1, "value added to the diagonal of the covariance", "--skd_ridge", check=positive)
        temperature: float = option(4.0, "temperature of the KL; published 1 on ImageNet", "--skd_T", check=positive)

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        z_s, z_t = self.comparable(s["logits"]), self.comparable(t["logits"])
        divergence = self.over_rows(kl_rows(z_s, z_t, self.cfg.temperature), s["logits"], t["logits"])
        apart = direction(z_s, z_t, self.cfg.ridge).mean()
        return {"skd": self.cfg.kl * divergence + self.cfg.direction * apart}
