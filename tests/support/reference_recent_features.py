"""Feature losses of recent years once more, literally: numpy, float64, explicit loops, nothing of the project."""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray as A

from tests.support.reference_losses import W, batch_norm, softmax


def unit(v: A) -> A:
    return v / math.sqrt(sum(x * x for x in v))


def linear(x: A, w: W, key: str) -> A:
    return np.array([w[f"{key}.weight"] @ row + w[f"{key}.bias"] for row in x])


def itrd(f_s: A, f_t: A, w: W, weights: tuple[float, float], alpha: float) -> float:
    """weights: of the correlation and the mutual term."""
    embedded = linear(f_s, w, "embed")

    def standard(column: A) -> A:
        mean = sum(column) / len(column)
        return (column - mean) / (math.sqrt(sum((v - mean) ** 2 for v in column) / (len(column) - 1)) + 1e-6)

    total, b = 0.0, len(f_t)
    for j in range(f_t.shape[1]):
        v = sum(standard(embedded[:, j]) * standard(f_t[:, j])) / b
        total += abs(v - 1) ** (2 * alpha)
    rows_s = np.array([unit(v) for v in (f_s if f_s.shape == f_t.shape else embedded)])
    rows_t = np.array([unit(v) for v in f_t])
    mutual = 0.0
    for i in range(b):
        for j in range(b):
            k_s, k_t = rows_s[i] @ rows_s[j], rows_t[i] @ rows_t[j]
            mutual += (k_s / b) ** 2 - (k_s * k_t / b) ** 2
    return weights[0] * math.log2(total) + weights[1] * mutual


def wkd_f(f_s: A, f_t: A, w: W, grid: int, ratio: float) -> float:
    """f_s: the student's map behind the convolution."""
    projected, total = np.maximum(batch_norm(f_s, w, "bn"), 0), 0.0

    def moments(f: A, p: int, q: int) -> tuple[float, float]:
        h, width = f.shape
        rows = range(p * h // grid, math.ceil((p + 1) * h / grid))
        columns = range(q * width // grid, math.ceil((q + 1) * width / grid))
        values = [f[i, j] for i in rows for j in columns]
        mean = sum(values) / len(values)
        return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) + 1e-5)

    for b in range(len(f_t)):
        for c in range(f_t.shape[1]):
            for p in range(grid):
                for q in range(grid):
                    (m_s, d_s), (m_t, d_t) = moments(projected[b, c], p, q), moments(f_t[b, c], p, q)
                    total += ratio * (m_s - m_t) ** 2 + (d_s - d_t) ** 2
    return total / (len(f_t) * grid**2)


def embed(f_s: A, f_t: A, w: W, loss: str, whiten: bool) -> float:
    if "proj.weight" in w:
        made = linear(f_s, w, "proj")
    else:
        hidden = linear(f_s, w, "proj.0")
        gelu = np.array([[v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in row] for row in hidden])
        made = linear(gelu, w, "proj.2")
    if whiten:
        f_t = np.array([(v - v.mean()) / math.sqrt(v.var() + 1e-5) for v in f_t])
    if loss == "cosine":
        return sum(1 - unit(a) @ unit(b) for a, b in zip(made, f_t, strict=True)) / len(f_t)
    gaps = [a - b for a, b in zip(made.ravel(), f_t.ravel(), strict=True)]
    if loss == "mse":
        return sum(d * d for d in gaps) / len(gaps)
    return sum(0.5 * d * d if abs(d) < 1 else abs(d) - 0.5 for d in gaps) / len(gaps)


def divergence(a: A, b: A, temperature: float) -> float:
    """KL(softmax(b / T) || softmax(a / T)) of two vectors of similarities."""
    p, q = softmax(a / temperature), softmax(b / temperature)
    return sum(y * math.log(y / x) for x, y in zip(p, q, strict=True))


def queue_global(f_s: A, f_t: A, rows: A, w: W, temperature: float) -> float:
    """rows: the queue before the batch; equal sizes drop its oldest rows."""
    g_s, g_t = (np.array([unit(v) for v in f]) for f in (linear(f_s, w, "globals"), f_t))
    queue = np.concatenate([g_t, rows])[: len(rows)]
    return sum(divergence(queue @ a, queue @ b, temperature) for a, b in zip(g_s, g_t, strict=True)) / len(g_t)


def queue_local(map_s: A, map_t: A, w: W, temperature: float) -> float:
    """Maps of one size."""
    total, (b, _, h, width) = 0.0, map_t.shape
    for n in range(b):
        places = [(i, j) for i in range(h) for j in range(width)]
        l_t = [unit(map_t[n, :, i, j]) for i, j in places]
        l_s = [unit(w["locals.weight"] @ map_s[n, :, i, j] + w["locals.bias"]) for i, j in places]
        for x, y in zip(l_s, l_t, strict=True):
            similar_s, similar_t = (np.array([v @ u for u in all_]) for v, all_ in ((x, l_s), (y, l_t)))
            total += divergence(similar_s, similar_t, temperature)
    return total / (b * h * width)


def norm_layers(f: A, w: W) -> tuple[A, A]:
    """(expanded, what the classifier pools) of a map [B, C, H, W]; batch norms in training mode."""
    expanded = batch_norm(np.einsum("oc,bchw->bohw", w["layer31.0.weight"][:, :, 0, 0], f), w, "layer31.1")
    back = batch_norm(np.einsum("oc,bchw->bohw", w["layer32.0.weight"][:, :, 0, 0], expanded), w, "layer32.1")
    return expanded, back + f


def norm(expanded: A, f_t: A, copies: int) -> float:
    """Where sizes differ, one is a multiple of the other."""
    h = min(expanded.shape[2], f_t.shape[2])

    def shrunk(f: A) -> A:
        k = f.shape[2] // h
        rows = [[f[:, :, k * i : k * i + k, k * j : k * j + k].max((2, 3)) for j in range(h)] for i in range(h)]
        return np.array(rows).transpose(2, 3, 0, 1)

    e, f = shrunk(expanded), shrunk(f_t)
    b, c = f.shape[:2]
    total = 0.0
    for n in range(copies):
        for k in range(c):
            total += ((e[:, n * c + k] - f[:, k]) ** 2).sum()
    return copies * total / (b * copies * c * h * h)


def norm_logits(z_s: A, z_t: A, y: A, temperature: float) -> tuple[float, float]:
    """Cross-entropy and T^2 KL of levelled logits."""
    level_s, level_t = ([2.5 * (z - z.mean()) / math.sqrt(z.var() + 1e-7) for z in rows] for rows in (z_s, z_t))
    cls = sum(-math.log(softmax(z)[label]) for z, label in zip(level_s, y, strict=True))
    div = sum(divergence(a, b, temperature) for a, b in zip(level_s, level_t, strict=True))
    return cls / len(y), temperature**2 * div / len(y)


def kdpp(f_s: A, f_t: A, seen: tuple[A, A], y: A, w: W) -> float:
    """seen: the teacher's vectors of the training set and their labels."""
    if w:
        f_s = linear(batch_norm(f_s, w, "fc1.0"), w, "fc1.2")
    total = 0.0
    for a, b, label in zip(f_s, f_t, y, strict=True):
        own = [v for v, k in zip(*seen, strict=True) if k == label]
        mean = sum(own) / len(own) if own else np.zeros_like(b)
        direction = unit(mean) if own else mean
        total += 1 - sum(a * direction) / max(math.sqrt(sum(a * a)), math.sqrt(sum(b * b)))
    return total / len(y)


def deit(z_s: A, z_t: A, kind: str, temperature: float) -> float:
    if kind == "soft":
        rows = [temperature**2 * divergence(a, b, temperature) for a, b in zip(z_s, z_t, strict=True)]
    else:
        rows = [-math.log(softmax(a)[max(range(len(b)), key=lambda k: b[k])]) for a, b in zip(z_s, z_t, strict=True)]
    return sum(rows) / len(rows)


def fcfd(made: list[list[A]], maps_t: list[A], mixed: list[A], z_t: A, temperature: float) -> tuple[float, float]:
    """made: of every stage, all maps that are compared with the teacher's. mixed: logits of the mixed networks."""

    def square(a: A, b: A) -> float:
        return sum((x - y) ** 2 for x, y in zip(a.ravel(), b.ravel(), strict=True)) / a.size

    def vectors(f: A) -> A:
        return np.array([[max_mean(channel) for channel in sample] for sample in f])

    def max_mean(channel: A) -> float:
        return sum(max(v, 0.0) for v in channel.ravel()) / channel.size

    maps = sum(square(f, f_t) for fs, f_t in zip(made, maps_t, strict=True) for f in fs)
    maps += sum(square(vectors(f), vectors(maps_t[-1])) for f in made[-1])
    rows = [divergence(a, b, temperature) for z in mixed for a, b in zip(z, z_t, strict=True)]
    return maps, temperature**2 * sum(rows) / len(z_t)
