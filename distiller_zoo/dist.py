"""Knowledge Distillation from A Stronger Teacher (Huang et al., NeurIPS 2022): 1 - Pearson's rho, rows and columns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from core.option import not_negative, option, positive
from core.protocols import Batch, Features, Progress, Terms
from distiller_zoo.base import Distiller


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """[N, M], [N, M] -> [N], Pearson's coefficient of paired rows; 0 where a row is constant."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)


class DIST(Distiller):
    """tau^2 * (beta * (1 - mean over samples of rho) + gamma * (1 - mean over classes of rho)) of softmax(z / tau).

    The relation within a class is computed over the rows of one process, so it depends on the batch size per device.
    """

    name = "dist"
    reads_logits = True

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        div: float = 0.0
        beta: float = 2.0
        inter: float = option(
            1.0, "weight of the relation between the classes of a sample", "--dist_beta", check=not_negative
        )
        intra: float = option(
            1.0, "weight of the relation between the samples of a class", "--dist_gamma", check=not_negative
        )
        tau: float = option(4.0, "temperature of both softmaxes", "--dist_tau", check=positive)

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        tau = self.cfg.tau
        p_s = (self.comparable(s["logits"]) / tau).softmax(1)  # [B, K]
        p_t = (self.comparable(t["logits"]) / tau).softmax(1)
        inter = 1 - correlation(p_s, p_t).mean()
        intra = 1 - correlation(p_s.T, p_t.T).mean()
        return {"dist": tau**2 * (self.cfg.inter * inter + self.cfg.intra * intra)}
