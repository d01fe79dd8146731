"""Knowledge Distillation Based on Transformed Teacher Matching (Zheng and Yang, ICLR 2024, weighted form, WTTM)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

from core.option import option, within
from core.protocols import Batch, Features, Progress, Terms
from distiller_zoo.base import LogitLoss


class WTTM(LogitLoss):
    """U_b * KL(q_b || p_s,b), mean over B, where q = p_t^gamma / U and U = sum over classes of p_t^gamma.

    The student's softmax has temperature 1. p_t^gamma / U is the teacher's softmax at temperature 1 / gamma.
    gamma and beta are those published for vgg13 -> vgg8 next to CRD; beta 45 belongs to the unweighted TTM.
    """

    name = "wttm"

    @dataclass(frozen=True)
    class Config(LogitLoss.Config):
        beta: float = 4.0
        gamma: float = option(
            0.2, "exponent of the teacher's probabilities", "--wttm_gamma", check=within(above=0, most=1)
        )

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        log_p_s = F.log_softmax(self.comparable(s["logits"]), 1)
        log_power = self.cfg.gamma * F.log_softmax(self.comparable(t["logits"]), 1)
        log_u = log_power.logsumexp(1, keepdim=True)  # [B, 1]
        divergence = F.kl_div(log_p_s, log_power - log_u, reduction="none", log_target=True).sum(1, keepdim=True)
        return {"wttm": self.over_rows((log_u.exp() * divergence).squeeze(1), s["logits"], t["logits"])}
