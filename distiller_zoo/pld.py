"""PLD: A Choice-Theoretic List-Wise Knowledge Distillation (Bassam et al., NeurIPS 2025): Plackett-Luce likelihood."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.option import option, positive
from core.protocols import Batch, Features, Progress, Terms
from distiller_zoo._math import labels_of
from distiller_zoo.base import LogitLoss


def label_first(z_t: Tensor, labels: Tensor) -> Tensor:
    """[B, K] class indices: the label, then all other classes by the teacher's logit, largest first."""
    raised = z_t.scatter(1, labels[:, None], float("inf"))
    return raised.argsort(dim=1, descending=True, stable=True)


class PLD(LogitLoss):
    """Sum over ranks k of q_t[pi_k] (logsumexp over l >= k of z_s[pi_l] - z_s[pi_k]), mean over B.

    pi: label_first(). q_t: the teacher's softmax at temperature tau; the student's logits are read as they are, without
    a factor tau^2. The loss replaces cross-entropy: cls is 0. The paper trains with AdamW, 1e-3, cosine, weight decay
    0.5 and batches of 128 for 250 epochs on CIFAR-100.
    """

    name = "pld"
    reads_labels = True

    @dataclass(frozen=True)
    class Config(LogitLoss.Config):
        cls: float = 0.0
        beta: float = 1.0
        tau: float = option(
            4.0, "temperature of the teacher's weights; published 1 on ImageNet", "--pld_tau", check=positive
        )

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        z_s, z_t = self.comparable(s["logits"]), self.comparable(t["logits"])
        order = label_first(z_t, labels_of(batch))
        ranked = z_s.gather(1, order)  # [B, K]
        weights = (z_t / self.cfg.tau).softmax(1).gather(1, order)
        remaining = torch.logcumsumexp(ranked.flip(1), 1).flip(1)  # of rank k and all later ones
        return {"pld": self.over_rows((weights * (remaining - ranked)).sum(1), s["logits"], t["logits"])}
