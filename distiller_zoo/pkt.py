"""Probabilistic Knowledge Transfer (Passalis and Tefas, ECCV 2018, eq. 7): mean p_t log(p_t / p_s), cosine kernel."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from core.protocols import Batch, Features, Progress, Terms
from distiller_zoo.base import PooledVectors, WithoutKL

EPS = 1e-7


def neighbourhood(e: Tensor) -> Tensor:
    """[B, D] -> [B, B] cosine similarities moved to [0, 1], rows summing to one."""
    unit = e / (e.norm(dim=1, keepdim=True) + EPS)
    similarity = (unit @ unit.T + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)


class PKT(PooledVectors):
    """Neighbourhoods of the pooled features. Mean over B^2 entries where the paper sums: hence the weight of 3e4."""

    name = "pkt"
    relational = True

    @dataclass(frozen=True)
    class Config(WithoutKL):
        beta: float = 30000.0

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        p_s, p_t = neighbourhood(s["pooled"]), neighbourhood(t["pooled"])
        return {"pkt": (p_t * ((p_t + EPS) / (p_s + EPS)).log()).mean()}
