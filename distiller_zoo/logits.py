"""Do Deep Nets Really Need to be Deep? (Ba and Caruana, NIPS 2014, eq. 1): mean (z_s - z_t)^2 of the logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

from core.protocols import Batch, Features, Progress, Terms
from distiller_zoo.base import Distiller


class Logits(Distiller):
    """Cross-entropy and the squared difference of the logits [B, K], mean over both; the baseline of CAKD's tables."""

    name = "logits"
    reads_logits = True

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        div: float = 0.0
        beta: float = 1.0

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        return {"logits": F.mse_loss(self.comparable(s["logits"]), self.comparable(t["logits"]))}
