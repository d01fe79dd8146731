"""From Knowledge Distillation to Self-Knowledge Distillation (Yang et al., ICCV 2023): normalised KD."""

from __future__ import annotations

from dataclasses import dataclass

from core.option import not_negative, option, positive
from core.protocols import Batch, Features, Progress, Terms
from distiller_zoo._math import labels_of, non_target
from distiller_zoo._rows import soft_cross_entropy, target_rows
from distiller_zoo.base import LogitLoss


class NKD(LogitLoss):
    """-p_t[y] log p_s[y] - gamma T^2 sum over other classes of q_t log q_s, mean over B.

    p: softmax at temperature 1; q: softmax over the classes that are not the label, at temperature T.
    """

    name = "nkd"
    reads_labels = True

    @dataclass(frozen=True)
    class Config(LogitLoss.Config):
        beta: float = 1.0
        gamma: float = option(
            3.5, "weight of the non-target part; published 1.5 on ImageNet", "--nkd_gamma", check=not_negative
        )
        temperature: float = option(
            3.0, "temperature of the non-target part; published 1 on ImageNet", "--nkd_T", check=positive
        )

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        z_s, z_t, labels = self.comparable(s["logits"]), self.comparable(t["logits"]), labels_of(batch)
        others = soft_cross_entropy(non_target(z_s, labels), non_target(z_t, labels), self.cfg.temperature)
        rows = target_rows(z_s, z_t, labels) + self.cfg.gamma * others
        return {"nkd": self.over_rows(rows, s["logits"], t["logits"])}
