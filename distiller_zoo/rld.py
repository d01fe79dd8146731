"""Knowledge Distillation with Refined Logits (Sun et al., ICCV 2025): sample confidence and masked correlation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from core.option import not_negative, option, positive
from core.protocols import Batch, Features, Progress, Terms
from distiller_zoo._math import labels_of, warmed_up
from distiller_zoo._rows import target_class
from distiller_zoo.base import LogitLoss


def masked_correlation(z_s: Tensor, z_t: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """[B] T^2 KL among the classes that the teacher ranks strictly below the label; 0 where one or none is left."""
    kept = z_t < z_t.gather(1, labels[:, None])
    some = kept.any(1, keepdim=True)
    # a row without classes keeps all of them and counts 0: its log-softmax and gradient stay finite
    masked = (kept | ~some).logical_not()
    log_p_s, log_p_t = (
        (z / temperature).masked_fill(masked, float("-inf")).log_softmax(1).masked_fill(masked, 0.0) for z in (z_s, z_t)
    )
    rows = (log_p_t.exp().masked_fill(masked, 0.0) * (log_p_t - log_p_s)).sum(1)
    return rows * some.squeeze(1) * temperature**2


class RLD(LogitLoss):
    """alpha * target_class() + beta * masked_correlation(), mean over B; the weight of their sum rises linearly.

    The first, the sample confidence, compares the teacher's largest probability with the student's of the label.
    Equals dkd where the teacher is right, but for classes that tie with the label. The authors' command sets the
    temperature of the confidence to that of the correlation: --rld_alpha_T 4.
    """

    name = "rld"
    reads_labels = True

    @dataclass(frozen=True)
    class Config(LogitLoss.Config):
        beta: float = 1.0
        confidence: float = option(1.0, "weight of the sample confidence", "--rld_alpha", check=not_negative)
        correlation: float = option(
            8.0,
            "weight of the masked correlation; published 0.5 and 2 on ImageNet",
            "--rld_beta",
            check=not_negative,
        )
        temperature: float = option(
            4.0, "temperature of the correlation; published 1 on ImageNet", "--rld_T", check=positive
        )
        alpha_T: float = option(1.0, "temperature of the confidence", "--rld_alpha_T", check=positive)  # noqa: N815 (as kd_T)
        warmup: int = option(
            20, "epochs over which the weight rises from 0; 0 for none", "--rld_warmup", check=not_negative
        )

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        z_s, z_t, labels = self.comparable(s["logits"]), self.comparable(t["logits"]), labels_of(batch)
        rows = self.cfg.confidence * target_class(z_s, z_t, labels, self.cfg.alpha_T, z_t.argmax(1))
        rows = rows + self.cfg.correlation * masked_correlation(z_s, z_t, labels, self.cfg.temperature)
        return {"rld": self.over_rows(rows, s["logits"], t["logits"])}

    def weights(self, progress: Progress) -> dict[str, float]:
        return {**super().weights(progress), "rld": self.cfg.beta * warmed_up(progress.epoch, self.cfg.warmup)}
