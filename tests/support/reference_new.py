"""The newer losses once more, literally: numpy, float64, explicit loops, nothing of the project.

Conventions and layers as in reference_losses.py, which imports nothing of the project either.
"""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray as A

from tests.support.reference_losses import W, batch_norm, conv, match, mean_square, relu, softmax


def z_score(z: A) -> A:
    out = np.empty_like(z)
    for b in range(len(z)):
        mean = sum(z[b]) / len(z[b])
        std = math.sqrt(sum((v - mean) ** 2 for v in z[b]) / (len(z[b]) - 1))
        out[b] = (z[b] - mean) / (std + 1e-7)
    return out


def dkd(z_s: A, z_t: A, y: A, alpha: float, beta: float, temperature: float) -> float:
    """alpha T^2 KL(b_t || b_s) + beta T^2 KL(p^_t || p^_s); b = (p_y, 1 - p_y), p^_i = p_i / (1 - p_y) for i != y."""
    total = 0.0
    for b in range(len(z_s)):
        p_s, p_t = softmax(z_s[b] / temperature), softmax(z_t[b] / temperature)
        s, t = p_s[y[b]], p_t[y[b]]
        total += alpha * (t * math.log(t / s) + (1 - t) * math.log((1 - t) / (1 - s)))
        for i in range(len(p_s)):
            if i != y[b]:
                q_s, q_t = p_s[i] / (1 - s), p_t[i] / (1 - t)
                total += beta * q_t * math.log(q_t / q_s)
    return temperature**2 * total / len(z_s)


def pearson(a: A, b: A) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    top = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    norm_a = math.sqrt(sum((x - mean_a) ** 2 for x in a))
    norm_b = math.sqrt(sum((y - mean_b) ** 2 for y in b))
    return top / (norm_a * norm_b + 1e-8)


def dist(z_s: A, z_t: A, beta: float, gamma: float, tau: float) -> float:
    p_s, p_t = (np.array([softmax(row / tau) for row in z]) for z in (z_s, z_t))
    n, k = p_s.shape
    inter = tau**2 * (1 - sum(pearson(p_s[i], p_t[i]) for i in range(n)) / n)
    intra = tau**2 * (1 - sum(pearson(p_s[:, j], p_t[:, j]) for j in range(k)) / k)
    return beta * inter + gamma * intra


def nkd(z_s: A, z_t: A, y: A, gamma: float, temperature: float) -> float:
    """-p_t[y] log p_s[y] - gamma T^2 sum_{i != y} q_t,i log q_s,i, q = softmax over i != y of z / T."""
    total = 0.0
    for b in range(len(z_s)):
        total -= softmax(z_t[b])[y[b]] * math.log(softmax(z_s[b])[y[b]])
        others = [i for i in range(len(z_s[b])) if i != y[b]]
        q_s, q_t = softmax(z_s[b][others] / temperature), softmax(z_t[b][others] / temperature)
        for i in range(len(others)):
            total -= gamma * temperature**2 * q_t[i] * math.log(q_s[i])
    return total / len(z_s)


def wttm(z_s: A, z_t: A, gamma: float) -> float:
    """sum_b U_b sum_k q_k log(q_k / p_s,k) / B, q = p_t^gamma / U."""
    total = 0.0
    for b in range(len(z_s)):
        p_s, power = softmax(z_s[b]), softmax(z_t[b]) ** gamma
        u = sum(power)
        total += u * sum(power[k] / u * math.log(power[k] / u / p_s[k]) for k in range(len(p_s)))
    return total / len(z_s)


def ctkd_temperature(theta: float, start: float, span: float) -> float:
    return start + span / (1 + math.exp(-theta))


def correlations(p_s: A, p_t: A) -> tuple[float, float]:
    """Of the batch, sum_ij (p_s,i . p_s,j - p_t,i . p_t,j)^2 / B; of the classes, the same of columns / K."""
    b, k = p_s.shape
    batch = sum((p_s[i] @ p_s[j] - p_t[i] @ p_t[j]) ** 2 for i in range(b) for j in range(b)) / b
    classes = sum((p_s[:, i] @ p_s[:, j] - p_t[:, i] @ p_t[:, j]) ** 2 for i in range(k) for j in range(k)) / k
    return float(batch), float(classes)


def mlkd(z_s: A, z_t: A, relations: bool = True) -> float:
    """One view: sum over T = 2..6."""
    total = 0.0
    for temperature in (2, 3, 4, 5, 6):
        p_s, p_t = (np.array([softmax(row / temperature) for row in z]) for z in (z_s, z_t))
        for b in range(len(p_s)):
            kl = sum(p_t[b][k] * math.log(p_t[b][k] / p_s[b][k]) for k in range(len(p_s[b])))
            total += temperature**2 * kl / len(p_s)
        total += sum(correlations(p_s, p_t)) if relations else 0.0
    return total


def cat_kd(f_s: A, f_t: A, head_s: W, head_t: W, side: int, normalised: bool) -> float:
    """Class maps W f + b at every place, averaged over side x side cells, of unit length; mean square."""

    def class_maps(f: A, w: W) -> A:
        b, _, h, width = f.shape
        k = len(w["bias"])
        maps = np.zeros((b, k, h, width))
        for i in range(h):
            for j in range(width):
                maps[:, :, i, j] = f[:, :, i, j] @ w["weight"].T + w["bias"]
        cells = np.zeros((b, k, side * side))
        for p in range(side):
            for q in range(side):
                rows = slice(p * h // side, -(-(p + 1) * h // side))
                columns = slice(q * width // side, -(-(q + 1) * width // side))
                cells[:, :, p * side + q] = maps[:, :, rows, columns].mean((2, 3))
        if normalised:
            for n in range(b):
                for c in range(k):
                    cells[n, c] /= math.sqrt((cells[n, c] ** 2).sum())
        return cells

    return mean_square(class_maps(f_s, head_s), class_maps(f_t, head_t))


def mgd(f_s: A, f_t: A, kept: A, w: W) -> float:
    f_s, f_t = match(f_s, f_t) if f_s.shape[2] != f_t.shape[2] else (f_s, f_t)
    if "align.weight" in w:
        f_s = conv(f_s, w["align.weight"], w["align.bias"])
    masked = np.array([[f_s[b, c] * kept[b, c] for c in range(f_s.shape[1])] for b in range(len(f_s))])
    hidden = relu(conv(masked, w["generate.0.weight"], w["generate.0.bias"], pad=1))
    made = conv(hidden, w["generate.2.weight"], w["generate.2.bias"], pad=1)
    return float(sum((x - y) ** 2 for x, y in zip(made.ravel(), f_t.ravel(), strict=True)) / len(f_t))


def srd(v_s: A, v_t: A, weight: A, exponent: float) -> float:
    def standard(x: A) -> A:
        return np.array([[(v - col.mean()) / math.sqrt(col.var() + 1e-4) for v in col] for col in x.T]).T

    a, b = standard(v_s @ weight.T), standard(v_t)
    return 2 * math.log(sum(abs(x - y) ** exponent for x, y in zip(a.ravel(), b.ravel(), strict=True)))


def gram_schmidt(vectors: A) -> A:
    """Rows, made orthonormal one after the other."""
    done: list[A] = []
    for v in vectors:
        for q in done:
            v = v - (v @ q) * q
        done.append(v / math.sqrt(v @ v))
    return np.array(done)


def vkd(v_s: A, v_t: A, weight: A) -> float:
    """Smooth L1: d^2 / 2 below 1, |d| - 1/2 above. P: the rows or the columns of the weight, whichever are fewer."""
    total = 0.0
    weight = gram_schmidt(weight) if weight.shape[0] < weight.shape[1] else gram_schmidt(weight.T).T
    for b in range(len(v_s)):
        target = (v_t[b] - v_t[b].mean()) / math.sqrt(v_t[b].var() + 1e-5)
        for d in weight @ v_s[b] - target:
            total += 0.5 * d**2 if abs(d) < 1 else abs(d) - 0.5
    return total / v_t.size


def ofa_exit(f: A, w: W, key: str, halvings: int) -> A:
    for i in range(halvings):
        depth = w[f"{key}.down.{i}.0.weight"]  # [C, 1, 3, 3]
        planes = [conv(f[:, c : c + 1], depth[c : c + 1], stride=2, pad=1) for c in range(f.shape[1])]
        f = conv(np.concatenate(planes, 1), w[f"{key}.down.{i}.1.weight"])
        f = relu(batch_norm(f, w, f"{key}.down.{i}.2"))
    return f.mean((2, 3)) @ w[f"{key}.classify.weight"].T + w[f"{key}.classify.bias"]


def ofa(z_s: A, z_t: A, y: A, eps: float) -> float:
    total = 0.0
    for b in range(len(z_s)):
        p_s, p_t = softmax(z_s[b]), softmax(z_t[b])
        for k in range(len(p_s)):
            one = 1.0 if k == y[b] else 0.0
            total -= ((p_t[k] + one) ** eps - one) * math.log(p_s[k])
    return total / len(z_s)
