"""Heterogeneous KD by Information Flow Modeling (Passalis et al., CVPR 2020): Jeffreys divergence of two kernels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from core.option import option
from core.protocols import Batch, Features, Progress, Terms
from distiller_zoo._math import gram, rows
from distiller_zoo.base import StagePairs

EPS = 1e-6
FIRST_WEIGHT, DECAY = 100.0, 0.7


def neighbourhoods(f: Tensor) -> tuple[Tensor, Tensor]:
    """[B, ...] -> two [B, B], rows summing to one: cosine moved to [0, 1], and Student-t 1 / (1 + distance)."""
    products = gram(rows(f))
    square = products.diagonal()
    length = square.clamp_min(1e-30).sqrt() + EPS  # the root of 0 has no derivative
    distance = ((square[:, None] + square - 2 * products).clamp_min(0) + EPS).sqrt()
    kernels = (products / (length[:, None] * length) + 1) / 2, 1 / (1 + distance)
    cosine, student_t = (k / k.sum(1, keepdim=True) for k in kernels)
    return cosine, student_t


def jeffreys(p: Tensor, q: Tensor) -> Tensor:
    """Mean of (p - q)(log p - log q); the floor keeps opposite vectors, whose similarity is 0, finite."""
    return ((p - q) * (p.clamp_min(1e-12).log() - q.clamp_min(1e-12).log())).mean()


class HKD(StagePairs):
    """Neighbourhoods of the batch at every paired stage: the last weighs 1, the others 100 * 0.7^(epochs done).

    SemCKD's code computes a decay over layers and drops it: there the first stage weighs 100 and the others 1, at all
    times. Its published table has these weights; `--hkd_layer_weights semckd` sets them.
    """

    name = "hkd"
    relational = True
    follows_time = True

    @dataclass(frozen=True)
    class Config(StagePairs.Config):
        beta: float = 1.0
        layer_weights: str = option(
            "paper",
            "paper: early stages fade with the epochs; semckd: 100 for the first stage, 1 for the others",
            choices=("paper", "semckd"),
        )

    def _layer_weights(self, progress: Progress) -> list[float]:
        others = len(self.pairs) - 1
        if self.cfg.layer_weights == "paper":
            return [FIRST_WEIGHT * DECAY ** (progress.epoch - 1)] * others + [1.0]
        return [FIRST_WEIGHT] + [1.0] * others

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        loss = s["logits"].new_zeros(())
        for (stage_s, stage_t), weight in zip(self.pairs, self._layer_weights(progress), strict=True):
            for p, q in zip(neighbourhoods(t[stage_t]), neighbourhoods(s[stage_s]), strict=True):
                loss = loss + weight * jeffreys(p, q)
        return {"hkd": loss}
