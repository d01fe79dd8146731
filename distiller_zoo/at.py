"""Paying More Attention to Attention (Zagoruyko and Komodakis, ICLR 2017, eq. 2, activation-based, p = 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

from core.protocols import Batch, Features, Progress, Terms
from distiller_zoo._math import attention_map, pool_to_smaller
from distiller_zoo.base import StagePairs, WithoutKL


class AT(StagePairs):
    """Sum over paired stages of mean (Q(f_s) - Q(f_t))^2, mean over B and H*W, the larger map pooled to the smaller.

    The paper takes the norm of the difference; the published weight (1000) belongs to the mean of its square.
    """

    name = "at"

    @dataclass(frozen=True)
    class Config(WithoutKL):
        beta: float = 1000.0

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        loss = s["logits"].new_zeros(())
        for stage_s, stage_t in self.pairs:
            f_s, f_t = pool_to_smaller(s[stage_s], t[stage_t])
            loss = loss + F.mse_loss(attention_map(f_s), attention_map(f_t))
        return {"at": loss}
