"""HSAKD, DML and DPCD once more, literally: numpy, float64, explicit loops, nothing of the project.

Written from the equations; log and softmax are taken as the published code takes them. Logits [R, K], heads a list of
[R, 4K] (HSAKD) or [B, K] (DPCD), y [B].
"""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray as A

from tests.support.reference_losses import softmax


def cross_entropy(z: A, y: A) -> float:
    return -sum(math.log(softmax(z[i])[y[i]]) for i in range(len(z))) / len(z)


def kd(z_s: A, z_t: A, temperature: float) -> float:
    """T^2 / R sum over rows of KL(softmax(z_t / T) || softmax(z_s / T))."""
    total = 0.0
    for row_s, row_t in zip(z_s, z_t, strict=True):
        p, q = softmax(row_s / temperature), softmax(row_t / temperature)
        total += sum(q[c] * (math.log(q[c]) - math.log(p[c])) for c in range(len(p)))
    return temperature**2 * total / len(z_s)


def joint(y: A) -> A:
    """Row 4b + k has label 4 y_b + k."""
    return np.array([4 * label + k for label in y for k in range(4)])


def hsakd_teacher(p: A, heads: list[A], y: A) -> float:
    return cross_entropy(p[::4], y) + sum(cross_entropy(q, joint(y)) for q in heads)


def hsakd_student(p_s: A, heads_s: list[A], p_t: A, heads_t: list[A], y: A) -> tuple[float, float]:
    """(cross-entropy, sum of the KD terms)."""
    pairs = [*zip(heads_s, heads_t, strict=True), (p_s, p_t)]
    return cross_entropy(p_s[::4], y), sum(kd(s, t, 3.0) for s, t in pairs)


def hsakd_online(p_1: A, heads_1: list[A], p_2: A, heads_2: list[A], y: A) -> tuple[float, float]:
    """(cls, div)."""
    cls = hsakd_teacher(p_1, heads_1, y) + hsakd_teacher(p_2, heads_2, y)
    pairs = [*zip(heads_1, heads_2, strict=True), (p_1, p_2)]
    return cls, sum(kd(a, b, 3.0) + kd(b, a, 3.0) for a, b in pairs)


def binary(z: A, y: int) -> tuple[float, float]:
    p = softmax(z)
    return p[y], sum(p[c] for c in range(len(p)) if c != y)


def others(z: A, y: int) -> A:
    masked = z.copy()
    masked[y] -= 1000.0
    return softmax(masked)


def dkd(z_s: A, z_t: A, y: A, temperature: float) -> tuple[float, float]:
    """(TCKD, NCKD) without their weights."""
    tckd = nckd = 0.0
    for s, t, label in zip(z_s / temperature, z_t / temperature, y, strict=True):
        tckd += sum(b * math.log(b / a) for a, b in zip(binary(s, label), binary(t, label), strict=True))
        n_s, n_t = others(s, label), others(t, label)
        nckd += sum(n_t[c] * math.log(n_t[c] / n_s[c]) for c in range(len(n_s)) if c != label)
    scale = temperature**2 / len(y)
    return scale * tckd, scale * nckd


def ced(
    z_s: A, z_t: A, y: A, beta: float = 8.0, temperature: float = 3.0, gamma: float = 2.0, eps: float = 1e-8
) -> tuple[float, float]:
    """(TCKD', beta NCKD') from z_t to z_s. eps: in the logarithm, as published."""
    tckd = nckd = 0.0
    for s, t, label in zip(z_s / temperature, z_t / temperature, y, strict=True):
        tckd += sum(
            b * (math.log(b) - math.log(a + eps)) for a, b in zip(binary(s, label), binary(t, label), strict=True)
        )
        p_s, p_t = softmax(s), softmax(t)
        omega = sum(math.sqrt(p_s[c] * p_t[c] * (c != label) + 1e-8) ** gamma for c in range(len(p_s)))
        n_s, n_t = others(s, label), others(t, label)
        nckd += omega * sum(n_t[c] * math.log(n_t[c] / n_s[c]) for c in range(len(n_s)) if c != label)
    scale = temperature**2 / len(y)
    return scale * tckd, beta * scale * nckd


def dpcd_paths(p: A, heads: list[A], y: A, eps: float = 1e-8) -> float:
    """Sum over i < L of sum over j >= i of CED(q_j, q_i), and over all i of CED(p, q_i)."""
    num = len(heads)
    total = sum(sum(ced(heads[j], heads[i], y, eps=eps)) for i in range(num - 1) for j in range(i, num))
    return total + sum(sum(ced(p, q, y, eps=eps)) for q in heads)


class Dynamic:
    """Weights of DKD from the teacher's confidence, step by step, as the published code describes them."""

    tiers = ((0, 0.60, 0.65), (200, 0.65, 0.70), (500, 0.70, 0.75))

    def __init__(self, length: int = 2000):
        self.history: list[float] = []
        self.length, self.mean = length, None

    def __call__(self, z_t: A, y: A, step: int) -> tuple[float, float]:
        confidence = [softmax(row)[label] for row, label in zip(z_t, y, strict=True)]
        self.history = (self.history + confidence)[-self.length :]
        now = sum(confidence) / len(confidence)
        self.mean = now if self.mean is None else 0.9 * self.mean + 0.1 * now
        _, tau, q = [tier for tier in self.tiers if step >= tier[0]][-1]
        if len(self.history) >= self.length:
            tau = float(np.quantile(self.history, q))
        sensitivity = 12 * (1 - min(step / 1000, 1)) + 6
        rho = 1 / (1 + math.exp(-sensitivity * (tau - self.mean)))
        return min(max(1 + rho, 0.5), 2.0), min(max(6 * (1 - 0.5 * rho), 5.0), 8.0)
