"""Decoupled Knowledge Distillation (Zhao et al., CVPR 2022, eq. 7): alpha * TCKD + beta * NCKD."""

from __future__ import annotations

from dataclasses import dataclass

from core.option import not_negative, option, positive
from core.protocols import Batch, Features, Progress, Terms
from distiller_zoo._math import labels_of, warmed_up
from distiller_zoo._rows import dkd_rows
from distiller_zoo.base import LogitLoss


class DKD(LogitLoss):
    """TCKD: T^2 KL of the two-way distributions target against rest. NCKD: T^2 KL among the other classes.

    Both mean over B; the weight of their sum rises linearly over the first epochs.
    """

    name = "dkd"
    reads_labels = True

    @dataclass(frozen=True)
    class Config(LogitLoss.Config):
        beta: float = 1.0
        tckd: float = option(1.0, "weight of the target-class part", "--dkd_alpha", check=not_negative)
        nckd: float = option(
            8.0,
            "weight of the non-target part; published 2 for resnet56 and 110, 6 for wrn and vgg",
            "--dkd_beta",
            check=not_negative,
        )
        temperature: float = option(4.0, "temperature of both parts", "--dkd_T", check=positive)
        warmup: int = option(
            20, "epochs over which the weight rises from 0; 0 for none", "--dkd_warmup", check=not_negative
        )

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        z_s, z_t = self.comparable(s["logits"]), self.comparable(t["logits"])
        rows = dkd_rows(z_s, z_t, labels_of(batch), (self.cfg.tckd, self.cfg.nckd), self.cfg.temperature)
        return {"dkd": self.over_rows(rows, s["logits"], t["logits"])}

    def weights(self, progress: Progress) -> dict[str, float]:
        return {**super().weights(progress), "dkd": self.cfg.beta * warmed_up(progress.epoch, self.cfg.warmup)}
