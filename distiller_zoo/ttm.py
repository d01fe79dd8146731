"""Knowledge Distillation Based on Transformed Teacher Matching (Zheng and Yang, ICLR 2024, TTM): KL(q_t || p_s)."""

from __future__ import annotations

from dataclasses import dataclass

from core.option import option, within
from core.protocols import Batch, Features, Progress, Terms
from distiller_zoo._math import kl_rows
from distiller_zoo.base import LogitLoss


class TTM(LogitLoss):
    """KL(q_b || p_s,b), mean over B; q is proportional to p_t^gamma, the teacher's softmax at temperature 1 / gamma.

    The student's softmax has temperature 1, and there is no factor T^2. gamma and beta are those published for
    vgg13 -> vgg8. The weighted form is wttm.
    """

    name = "ttm"

    @dataclass(frozen=True)
    class Config(LogitLoss.Config):
        beta: float = 45.0
        gamma: float = option(
            0.1, "exponent of the teacher's probabilities", "--ttm_gamma", check=within(above=0, most=1)
        )

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        rows = kl_rows(self.comparable(s["logits"]), self.cfg.gamma * self.comparable(t["logits"]), 1.0)
        return {"ttm": self.over_rows(rows, s["logits"], t["logits"])}
