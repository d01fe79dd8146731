"""LumiNet: Perception-Driven Knowledge Distillation via Statistical Logit Calibration (Hossain et al., TMLR 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from core.option import not_negative, option, positive
from core.protocols import Batch, Features, Progress, Terms
from distiller_zoo._math import kl_rows, warmed_up
from distiller_zoo.base import LogitLoss

EPS = 1e-5


def perceived(logits: Tensor) -> Tensor:
    """[B, K]: each class column minus its mean over the batch, over its standard deviation (biased variance + 1e-5)."""
    centred = logits - logits.mean(0)
    return centred / (centred.pow(2).mean(0) + EPS).sqrt()


class LumiNet(LogitLoss):
    """alpha^2 * KL(softmax(x_t / T) || softmax(x_s / T)), mean over B; x: perceived(); alpha^2 replaces T^2.

    The statistics are those of the rows of one process, so the loss depends on the batch size per device, and a batch
    of one gives 0. Defaults are those of resnet32x4 -> resnet8x4.
    """

    name = "luminet"
    relational = True

    @dataclass(frozen=True)
    class Config(LogitLoss.Config):
        cls: float = 2.0
        beta: float = 1.0
        alpha: float = option(
            33.0,
            "its square multiplies the divergence; published 2 on ImageNet",
            "--luminet_alpha",
            check=not_negative,
        )
        temperature: float = option(
            4.0,
            "temperature of both softmaxes; published 8 for vgg, 0.7 on ImageNet",
            "--luminet_T",
            check=positive,
        )
        warmup: int = option(
            20, "epochs over which the weight rises from 0; 0 for none", "--luminet_warmup", check=not_negative
        )

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        x_s, x_t = perceived(self.comparable(s["logits"])), perceived(self.comparable(t["logits"]))
        temperature = self.cfg.temperature
        rows = kl_rows(x_s, x_t, temperature) * (self.cfg.alpha / temperature) ** 2
        return {"luminet": self.over_rows(rows, s["logits"], t["logits"])}

    def weights(self, progress: Progress) -> dict[str, float]:
        return {**super().weights(progress), "luminet": self.cfg.beta * warmed_up(progress.epoch, self.cfg.warmup)}
