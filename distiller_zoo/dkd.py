"""Decoupled Knowledge Distillation (Zhao et al., CVPR 2022, eq. 7): alpha * TCKD + beta * NCKD."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

from core.option import check_range, option
from core.protocols import Batch, Features, Progress, Terms
from distiller_zoo._math import kl, labels_of, log_binary, non_target
from distiller_zoo.base import Distiller


class DKD(Distiller):
    """TCKD: T^2 KL of the two-way distributions target against rest. NCKD: T^2 KL among the other classes.

    Both mean over B; the weight of their sum rises linearly over the first epochs.
    """

    name = "dkd"
    reads_logits = True

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        div: float = 0.0
        beta: float = 1.0
        tckd: float = option(1.0, "weight of the target-class part", "--dkd_alpha")
        nckd: float = option(
            8.0, "weight of the non-target part; published 2 for resnet56 and 110, 6 for wrn and vgg", "--dkd_beta"
        )
        temperature: float = option(4.0, "temperature of both parts", "--dkd_T")
        warmup: int = option(20, "epochs over which the weight rises from 0; 0 for none", "--dkd_warmup")

        def __post_init__(self) -> None:
            check_range("--dkd_alpha", self.tckd, least=0)
            check_range("--dkd_beta", self.nckd, least=0)
            check_range("--dkd_T", self.temperature, above=0)
            check_range("--dkd_warmup", self.warmup, least=0)

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        z_s, z_t, labels = self.comparable(s["logits"]), self.comparable(t["logits"]), labels_of(batch)
        temperature = self.cfg.temperature
        log_b_s, log_b_t = log_binary(z_s / temperature, labels), log_binary(z_t / temperature, labels)
        tckd = F.kl_div(log_b_s, log_b_t, reduction="batchmean", log_target=True) * temperature**2
        nckd = kl(non_target(z_s, labels), non_target(z_t, labels), temperature)
        return {"dkd": self.cfg.tckd * tckd + self.cfg.nckd * nckd}

    def weights(self, progress: Progress) -> dict[str, float]:
        ramp = min(progress.epoch / self.cfg.warmup, 1.0) if self.cfg.warmup else 1.0
        return {**super().weights(progress), "dkd": self.cfg.beta * ramp}
