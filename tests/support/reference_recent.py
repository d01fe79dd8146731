"""Logit losses of 2022 to 2026 once more, literally: numpy, float64, explicit loops, nothing of the project.

z_s, z_t: logits [B, K] of student and teacher; y: labels [B]. Every function of two logits returns one value per row.
"""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray as A

from tests.support.reference_losses import softmax


def kl_of(p: A, q: A) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def kd(z_s: A, z_t: A, temperature: float) -> A:
    return np.array(
        [
            temperature**2 * kl_of(softmax(t / temperature), softmax(s / temperature))
            for s, t in zip(z_s, z_t, strict=True)
        ]
    )


def without(z: A, label: int) -> A:
    return np.array([v for k, v in enumerate(z) if k != label])


def two_way(z: A, label: int, temperature: float) -> tuple[float, float]:
    p = softmax(z / temperature)
    return p[label], sum(v for k, v in enumerate(p) if k != label)


def dkd(z_s: A, z_t: A, y: A, alpha: float, beta: float, temperature: float) -> A:
    rows = []
    for s, t, label in zip(z_s, z_t, y, strict=True):
        tckd = kl_of(two_way(t, label, temperature), two_way(s, label, temperature))
        nckd = kl_of(softmax(without(t, label) / temperature), softmax(without(s, label) / temperature))
        rows.append(temperature**2 * (alpha * tckd + beta * nckd))
    return np.array(rows)


def nkd(z_s: A, z_t: A, y: A, gamma: float, temperature: float, masked: bool = True) -> A:
    rows = []
    for s, t, label in zip(z_s, z_t, y, strict=True):
        target = -softmax(t)[label] * math.log(softmax(s)[label])
        if masked:
            s, t = without(s, label), without(t, label)
        p_s, p_t = softmax(s / temperature), softmax(t / temperature)
        others = -sum(a * math.log(b) for a, b in zip(p_t, p_s, strict=True))
        rows.append(target + gamma * temperature**2 * others)
    return np.array(rows)


def ttm(z_s: A, z_t: A, gamma: float) -> A:
    rows = []
    for s, t in zip(z_s, z_t, strict=True):
        power = softmax(t) ** gamma
        rows.append(kl_of(power / sum(power), softmax(s)))
    return np.array(rows)


def pld(z_s: A, z_t: A, y: A, tau: float) -> A:
    rows = []
    for s, t, label in zip(z_s, z_t, y, strict=True):
        order = [label, *sorted((k for k in range(len(t)) if k != label), key=lambda k: -t[k])]
        weight = softmax(t / tau)
        total = 0.0
        for k, c in enumerate(order):
            total += weight[c] * (math.log(sum(math.exp(s[later]) for later in order[k:])) - s[c])
        rows.append(total)
    return np.array(rows)


def luminet(z_s: A, z_t: A, alpha: float, temperature: float) -> A:
    def perceived(z: A) -> A:
        out = np.empty_like(z)
        for k in range(z.shape[1]):
            mean = sum(z[:, k]) / len(z)
            variance = sum((v - mean) ** 2 for v in z[:, k]) / len(z)
            out[:, k] = (z[:, k] - mean) / math.sqrt(variance + 1e-5)
        return out

    x_s, x_t = perceived(z_s), perceived(z_t)
    return alpha**2 * kd(x_s, x_t, temperature) / temperature**2


def rld(z_s: A, z_t: A, y: A, weights: tuple[float, float], temperatures: tuple[float, float]) -> A:
    """weights: alpha and beta. temperatures: of the confidence and of the correlation."""
    (alpha, beta), (hot, temperature) = weights, temperatures
    rows = []
    for s, t, label in zip(z_s, z_t, y, strict=True):
        row = alpha * hot**2 * kl_of(two_way(t, int(np.argmax(t)), hot), two_way(s, label, hot))
        below = [k for k in range(len(t)) if t[k] < t[label]]
        if below:
            p_t, p_s = softmax(t[below] / temperature), softmax(s[below] / temperature)
            row += beta * temperature**2 * kl_of(p_t, p_s)
        rows.append(row)
    return np.array(rows)


def cka_distances(features: A) -> A:
    """[K, n, D] -> [K, K]."""
    x = [f - f.mean(0) for f in features]

    def squared(i: int, j: int) -> float:
        return float(((x[j].T @ x[i]) ** 2).sum())

    out = np.empty((len(x), len(x)))
    for i in range(len(x)):
        for j in range(len(x)):
            out[i, j] = 1 - squared(i, j) / math.sqrt(squared(i, i) * squared(j, j))
    return out


def cosine_distances(weight: A) -> A:
    return np.array([[1 - a @ b / math.sqrt((a @ a) * (b @ b)) for b in weight] for a in weight])


def transport(z_s: A, z_t: A, y: A, cost: A, temperature: float) -> A:
    """With the row and the column of the label cut out of every sample's own cost matrix."""
    rows = []
    for s, t, label in zip(z_s, z_t, y, strict=True):
        kept = [k for k in range(len(s)) if k != label]
        d = np.maximum(cost[np.ix_(kept, kept)], 0) + 1e-8
        q_s, q_t = softmax(s[kept] / temperature), softmax(t[kept] / temperature)
        kernel = np.exp(-d / 0.05)
        u = np.full(len(kept), 1 / len(kept))
        for _ in range(10):
            v = q_t / (kernel.T @ u + 1e-8)
            u = q_s / (kernel @ v + 1e-8)
        plan = np.diag(u) @ kernel @ np.diag(v)
        rows.append((plan * d).sum())
    return np.array(rows)


def ldrld(z_s: A, z_t: A, d: int, temperature: float, weights: tuple[float, float], averaged: bool) -> A:
    alpha, beta = weights
    rows = []
    for s, t in zip(z_s, z_t, strict=True):
        order = sorted(range(len(s)), key=lambda k: -s[k])

        def part(classes: list[int], s: A = s, t: A = t) -> float:
            return temperature**2 * kl_of(softmax(t[classes] / temperature), softmax(s[classes] / temperature))

        local, omega = 0.0, 0.0
        for i in range(1, d + 1):
            for j in range(i + 1, d + 1):
                omega = 2 * math.exp(-0.05 * (i + j)) / (1.5 + j - i)
                local += omega * part([order[i - 1], order[j - 1]])
        local += part(order[:d]) * (omega if averaged and d == 2 else 1.0)
        if averaged:
            local /= d * (d - 1) / 2 + 1
        rows.append(alpha * local + beta * part(order[d:]))
    return np.array(rows)


def skd_direction(z_s: A, z_t: A, ridge: float) -> A:
    def gram(z: A) -> A:
        unit = np.array([row / math.sqrt(row @ row) for row in z])
        return np.array([[a @ b for b in unit] for a in unit])

    delta = (gram(z_s) - gram(z_t)) / z_s.shape[1]
    inverse = np.linalg.inv(np.cov(delta, rowvar=False) + ridge * np.eye(len(delta)))
    return np.array([math.sqrt(row @ inverse @ row + 1e-12) for row in delta])


def crld(
    views_s: tuple[A, A], views_t: tuple[A, A], weights: tuple[float, float], thresholds: tuple[float, float], T: float
) -> A:  # noqa: N803 (the paper's letter)
    (s_w, s_s), (t_w, t_s) = views_s, views_t
    rows = []
    for b in range(len(s_w)):
        at = slice(b, b + 1)
        row = 0.0
        if max(softmax(t_w[b])) >= thresholds[0]:
            row += weights[0] * (kd(s_w[at], t_w[at], T)[0] + kd(s_s[at], t_s[at], T)[0])
        if max(softmax(t_s[b])) >= thresholds[1]:
            row += weights[1] * (kd(s_s[at], t_w[at], T)[0] + kd(s_w[at], t_s[at], T)[0])
        rows.append(row)
    return np.array(rows)


def region_logits(f: A, weight: A, bias: A, scales: tuple[int, ...]) -> A:
    """[B, C, H, W] -> [B, N, K], the whole map first."""

    def bounds(i: int, cells: int, size: int) -> slice:
        return slice(i * size // cells, -(-(i + 1) * size // cells))

    b, c, height, width = f.shape
    cells = np.empty((b, c, 4, 4))
    for i in range(4):
        for j in range(4):
            cells[:, :, i, j] = f[:, :, bounds(i, 4, height), bounds(j, 4, width)].mean((2, 3))
    regions = []
    for n in sorted(scales):
        for i in range(n):
            for j in range(n):
                regions.append(cells[:, :, bounds(i, n, 4), bounds(j, n, 4)].mean((2, 3)) @ weight.T + bias)
    return np.stack(regions, 1)


def sdd(z_s: A, z_t: A, y: A, rows_of) -> float:
    """z_s, z_t: [B, N, K], the whole map first; rows_of: the base method."""
    total, (b, n, _) = 0.0, z_s.shape
    for region in range(n):
        values = rows_of(z_s[:, region], z_t[:, region], y)
        for i in range(b):
            whole = int(np.argmax(z_t[i, 0])) == y[i]
            here = int(np.argmax(z_t[i, region])) == y[i]
            total += values[i] * (2 if whole != here else 1)
    return total / (b * n)


def entropy(z: A, temperature: float) -> float:
    return -sum(p * math.log(p) for p in softmax(z / temperature))


def ea_weights(z_s: A, z_t: A, temperature: float, bound: float) -> A:
    return np.array(
        [0.5 * entropy(t, temperature) * (1 + entropy(s, temperature) / bound) for s, t in zip(z_s, z_t, strict=True)]
    )


def deviation(z: A) -> A:
    return np.array([math.sqrt(sum((v - sum(row) / len(row)) ** 2 for v in row) / (len(row) - 1)) for row in z])


def normkd(z_s: A, z_t: A, n: float) -> A:
    t_s, t_t = n * deviation(z_s), n * deviation(z_t)
    return np.array([t_t[b] ** 2 * kl_of(softmax(z_t[b] / t_t[b]), softmax(z_s[b] / t_s[b])) for b in range(len(z_s))])


def hard_kd(z_s: A, z_t: A) -> A:
    return np.array([-math.log(softmax(s)[int(np.argmax(t))]) for s, t in zip(z_s, z_t, strict=True)])


def deepkd(z_s: A, z_t: A, y: A, temperature: float, top: int) -> tuple[A, A]:
    """Rows of the target-class part, and of the other classes among the teacher's `top` largest."""
    target, other = [], []
    for s, t, label in zip(z_s, z_t, y, strict=True):
        target.append(temperature**2 * kl_of(two_way(t, label, temperature), two_way(s, label, temperature)))
        kept = [k for k in sorted(range(len(t)), key=lambda k: -t[k])[:top] if k != label]
        p_t, p_s = (softmax(np.array([z[k] for k in kept]) / temperature) if kept else () for z in (t, s))
        other.append(temperature**2 * kl_of(p_t, p_s))
    return np.array(target), np.array(other)


def dhkd(z_s: A, z_t: A, temperature: float, norm: bool) -> A:
    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    rows = []
    for s, t in zip(z_s, z_t, strict=True):
        total = 0.0
        for a, b in zip(s, t, strict=True):
            x, p = ((a - b) / temperature, 0.5) if norm else (a / temperature, sigmoid(b / temperature))
            total += p * math.log(p / sigmoid(x)) + (1 - p) * math.log((1 - p) / sigmoid(-x))
        rows.append(temperature**2 * total)
    return np.array(rows)


def aligned(gradients: list[A | None]) -> list[A]:
    """gradients: of the task, then of the other loss, of the same parameters in turn; what the second become."""
    half = len(gradients) // 2
    shapes = [(a if b is None else b).shape for a, b in zip(gradients[:half], gradients[half:], strict=True)]
    full = [np.zeros(shape) if g is None else g for g, shape in zip(gradients, shapes * 2, strict=True)]
    g_1, g_2 = (np.concatenate([g.ravel() for g in part]) for part in (full[:half], full[half:]))
    if (product := sum(g_1 * g_2)) < 0:
        g_2 = g_2 - product / sum(g_1 * g_1) * g_1
    sizes = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    return [g.reshape(shape) for g, shape in zip(np.split(g_2, sizes), shapes, strict=True)]


def parted_sgd(
    p: A, gradients: list[list[A | None]], parts: list[tuple[float, bool]], settings: tuple[float, float, float]
) -> A:
    """One parameter after all steps. gradients: of every part, a list over steps. parts: difference of the momentum,
    and whether weight decay goes with it. settings: learning rate, momentum, weight decay."""
    lr, momentum, decay = settings
    buffers: list[A | None] = [None] * len(parts)
    for k in range(len(gradients[0])):
        alone = sum(own[k] is not None for own in gradients) == 1
        for i, (difference, decays) in enumerate(parts):
            g = gradients[i][k]
            if g is None:
                continue
            v = buffers[i]
            if decays or (alone and v is not None):
                g = g + decay * p
            v = g if v is None else (momentum if alone else momentum + difference) * v + g
            buffers[i] = v
            p = p - lr * v
    return p
