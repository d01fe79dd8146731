"""Curriculum Temperature for Knowledge Distillation (Li et al., AAAI 2023, global version): a learned T."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.option import option, positive, within
from core.protocols import Batch, Context, Features, Progress, Terms
from distiller_zoo._math import kl
from distiller_zoo.base import LogitLoss


def reversed_gradient(x: Tensor, scale: float) -> Tensor:
    """The value of x; the gradient arrives multiplied by -scale."""
    return x.detach() - scale * (x - x.detach())


class CTKD(LogitLoss):
    """T^2 KL at T = start + range * sigmoid(theta); theta climbs the loss, ever more strongly.

    The reversed gradient is scaled by (1 - cos(pi e / E)) / 2 of the epoch e, and by 1 after E epochs. As in the
    released code, theta starts at 1 (T = 15.6 with the defaults) and its gradient passes through the factor T^2 too.
    """

    name = "ctkd"
    follows_time = True

    @dataclass(frozen=True)
    class Config(LogitLoss.Config):
        cls: float = 0.1
        beta: float = 0.9
        start: float = option(1.0, "lowest temperature", "--ctkd_start", check=positive)
        span: float = option(20.0, "how far the temperature can rise above the lowest", "--ctkd_range", check=positive)
        epochs: int = option(
            10, "epochs over which the reversed gradient grows to full strength", "--ctkd_epochs", check=within(least=1)
        )

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        self.theta = nn.Parameter(torch.tensor(1.0))

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        return {**s, "ctkd.temperature": self.cfg.start + self.cfg.span * self.theta.sigmoid()}, t

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        share = min(progress.epoch / self.cfg.epochs, 1.0)
        strength = 0.5 * (1 - math.cos(math.pi * share))
        temperature = reversed_gradient(s["ctkd.temperature"], strength)
        weights = self.row_weights(s["logits"], t["logits"])
        return {"ctkd": kl(self.comparable(s["logits"]), self.comparable(t["logits"]), temperature, weights)}
