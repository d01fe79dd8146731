"""The losses of the classic methods once more, literally; layers and conventions of reference_losses."""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray as A

from tests.support.reference_losses import W, batch_norm, conv, linear, match, mean_square, pool, transposed_conv


def unit(x: A, eps: float = 1e-12) -> A:
    return x / max(math.sqrt(float((x**2).sum())), eps)


def huber(x: float) -> float:
    return 0.5 * x**2 if abs(x) < 1 else abs(x) - 0.5


def cc(e_s: A, e_t: A, w: W) -> float:
    delta = np.abs(linear(e_s, w, "embed_s") - linear(e_t, w, "embed_t"))
    return sum(float(delta[b] @ delta[b + 1]) for b in range(len(delta) - 1)) / (len(delta) - 1)


def rkd(e_s: A, e_t: A, weight_d: float, weight_a: float) -> float:
    n = len(e_s)

    def distance(e: A) -> A:
        d = np.array([[math.sqrt(float(((e[i] - e[j]) ** 2).sum())) for j in range(n)] for i in range(n)])
        return d / d[d > 0].mean()

    def angle(e: A, i: int, j: int, k: int) -> float:
        return float(unit(e[j] - e[i]) @ unit(e[k] - e[i]))

    d_s, d_t = distance(e_s), distance(e_t)
    loss_d = sum(huber(d_s[i, j] - d_t[i, j]) for i in range(n) for j in range(n)) / n**2
    triples = [(i, j, k) for i in range(n) for j in range(n) for k in range(n)]
    loss_a = sum(huber(angle(e_s, *t) - angle(e_t, *t)) for t in triples) / n**3
    return weight_d * loss_d + weight_a * loss_a


def pkt(e_s: A, e_t: A) -> float:
    n = len(e_s)

    def probabilities(e: A) -> A:
        rows = [x / (math.sqrt(float((x**2).sum())) + 1e-7) for x in e]
        p = np.array([[(float(a @ b) + 1) / 2 for b in rows] for a in rows])
        return np.array([row / row.sum() for row in p])

    p_s, p_t = probabilities(e_s), probabilities(e_t)
    cells = [(i, j) for i in range(n) for j in range(n)]
    return sum(p_t[c] * math.log((p_t[c] + 1e-7) / (p_s[c] + 1e-7)) for c in cells) / n**2


def nst(maps_s: list[A], maps_t: list[A]) -> float:
    def mean_kernel(a: A, b: A) -> float:
        """(a_i . b_j)^2 over samples and pairs of channels."""
        total = 0.0
        for x, y in zip(a, b, strict=True):
            total += sum(float(unit(p.ravel()) @ unit(q.ravel())) ** 2 for p in x for q in y)
        return total / (len(a) * a.shape[1] * b.shape[1])

    total = 0.0
    for f_s, f_t in zip(maps_s, maps_t, strict=False):
        s, t = match(f_s, f_t)
        total += mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t)
    return total


def kdsvd(maps_s: list[A], maps_t: list[A]) -> float:
    def vectors(f: A, num: int) -> list[A]:
        """Right singular vectors of the [H*W, C] matrix of one sample."""
        return list(np.linalg.svd(f.reshape(f.shape[0], -1).T, full_matrices=False)[2][:num])

    def relation(now: A, before: A) -> A:
        return np.array([[math.exp(-((p - q) ** 2) / 8) for q in before] for p in now])

    total = 0.0
    for b in range(len(maps_s[0])):
        before = None
        for f_s, f_t in zip(maps_s, maps_t, strict=False):
            (v_t,) = vectors(f_t[b], 1)
            v_t = v_t * np.sign(v_t.sum())
            v_s = max(vectors(f_s[b], 4), key=lambda v: abs(float(v @ v_t)))  # noqa: B023 (used at once)
            v_s = v_s * np.sign(float(v_s @ v_t))
            if before is not None:
                total += float(((relation(v_s, before[0]) - relation(v_t, before[1])) ** 2).sum())
            before = v_s, v_t
    return total / len(maps_s[0])


def edges(e: A) -> A:
    flat = e.reshape(len(e), -1)
    d = np.array([[float(((a - b) ** 2).sum()) for b in flat] for a in flat])
    return d / (d.max() + 1e-12)


def irg(e_s: A, e_t: A) -> float:
    loss = mean_square(edges(e_s), edges(e_t))
    return loss + mean_square(e_s, e_t) if e_s.shape == e_t.shape else loss


def irg_transform(pair_s: tuple[A, A], pair_t: tuple[A, A], with_edges: bool) -> float:
    """What two layers of each network add."""
    (a, b), (c, d) = pair_s, pair_t
    loss = 0.0
    if with_edges:
        loss += (mean_square(edges(a), edges(b)) - mean_square(edges(c), edges(d))) ** 2
    if a.shape == b.shape and c.shape == d.shape:
        loss += (mean_square(a, b) - mean_square(c, d)) ** 2
    return loss


def hkd(maps_s: list[A], maps_t: list[A], weights: list[float]) -> float:
    def probabilities(f: A) -> tuple[A, A]:
        flat = f.reshape(len(f), -1)
        rows = [x / (math.sqrt(float((x**2).sum())) + 1e-6) for x in flat]
        cosine = np.array([[(float(a @ b) + 1) / 2 for b in rows] for a in rows])
        student_t = np.array([[1 / (1 + math.sqrt(float(((a - b) ** 2).sum()) + 1e-6)) for b in flat] for a in flat])
        return tuple(np.array([row / row.sum() for row in k]) for k in (cosine, student_t))

    total = 0.0
    for f_s, f_t, weight in zip(maps_s, maps_t, weights, strict=False):
        for p_s, p_t in zip(probabilities(f_s), probabilities(f_t), strict=True):
            total += weight * float(((p_t - p_s) * (np.log(p_t) - np.log(p_s))).mean())
    return total


def ab(maps_s: list[A], maps_t: list[A], w: W) -> float:
    n = len(maps_s)
    total = 0.0
    for i, (s, t) in enumerate(zip(maps_s, maps_t, strict=True)):
        if s.shape != t.shape:
            weight, bias = w[f"connectors.{i}.conv.weight"], w[f"connectors.{i}.conv.bias"]
            if s.shape[2] == 2 * t.shape[2]:
                s = conv(s, weight, bias, stride=2, pad=1)
            elif 2 * s.shape[2] == t.shape[2]:
                s = transposed_conv(s, weight, bias, stride=2, pad=1)
            else:
                s = conv(s, weight, bias)
            s = batch_norm(s, w, f"connectors.{i}.bn")
        loss = 0.0
        for x, y in zip(s.ravel(), t.ravel(), strict=True):
            if y <= 0 and x > -1:
                loss += (x + 1) ** 2
            if y > 0 and x <= 1:
                loss += (x - 1) ** 2
        total += 2.0 ** (i - n + 1) * loss
    return 3 / (1000 * len(maps_s[0])) * total


def leaky(x: A) -> A:
    return np.where(x > 0, x, 0.1 * x)


def factor(f: A, w: W, key: str, normed: bool) -> A:
    for i in (0, 3, 6):
        f = conv(f, w[f"{key}.{i}.weight"], w[f"{key}.{i}.bias"], pad=1)
        f = leaky(batch_norm(f, w, f"{key}.{i + 1}") if normed else f)
    return f


def ft(f_s: A, f_t: A, w: W) -> float:
    s, t = match(factor(f_s, w, "translator.encoder", True), factor(f_t, w, "paraphraser.encoder", False))

    def q(f: A) -> A:
        return np.array([unit((x**2).mean(0).ravel()) for x in f])

    return float(np.abs(q(s) - q(t)).mean())


def ft_init(f_t: A, w: W) -> float:
    rebuilt = factor(f_t, w, "paraphraser.encoder", False)
    for i in (0, 3, 6):
        weight, bias = w[f"paraphraser.decoder.{i}.weight"], w[f"paraphraser.decoder.{i}.bias"]
        rebuilt = leaky(transposed_conv(rebuilt, weight, bias, stride=1, pad=1))
    return mean_square(rebuilt, f_t)


def fsp(maps_s: list[A], maps_t: list[A]) -> float:
    def flow(top: A, bottom: A) -> A:
        top, bottom = match(top, bottom)
        return np.array([[[(p * q).mean() for q in y] for p in x] for x, y in zip(top, bottom, strict=True)])

    pairs = range(len(maps_s) - 1)
    return sum(mean_square(flow(maps_s[i], maps_s[i + 1]), flow(maps_t[i], maps_t[i + 1])) for i in pairs)


def ofd(maps_s: list[A], maps_t: list[A], w: W) -> float:
    n = len(maps_s)
    total = 0.0
    for i, (f_s, f_t) in enumerate(zip(maps_s, maps_t, strict=True)):
        s, t = match(f_s, f_t)
        s = batch_norm(conv(s, w[f"connectors.{i}.0.weight"]), w, f"connectors.{i}.1")
        loss = 0.0
        for c in range(t.shape[1]):
            negative = t[:, c][t[:, c] < 0]
            m = negative.mean() if len(negative) else 0.0
            for x, y in zip(s[:, c].ravel(), t[:, c].ravel(), strict=True):
                if y > 0 or m < y <= 0 and x > y:
                    loss += (x - y) ** 2
                elif y <= m and x > m:
                    loss += (x - m) ** 2
        total += loss / len(s) / 2 ** (n - 1 - i)
    return total


def nearest(x: A, h: int, w: int) -> A:
    rows, columns = [p * x.shape[2] // h for p in range(h)], [q * x.shape[3] // w for q in range(w)]
    return x[:, :, rows][:, :, :, columns]


def hcl(s: A, t: A) -> float:
    loss, total = mean_square(s, t), 1.0
    weight = 1.0
    for grid in (4, 2, 1):
        if grid >= s.shape[2]:
            continue
        weight /= 2
        loss += weight * mean_square(pool(s, grid, grid), pool(t, grid, grid))
        total += weight
    return loss / total


def reviewkd(levels_s: list[A], levels_t: list[A], w: W) -> float:
    """Levels from the pooled feature [B, C, 1, 1] upwards."""
    total, residual = 0.0, None
    for i, (f_s, f_t) in enumerate(zip(levels_s, levels_t, strict=False)):
        x = batch_norm(conv(f_s, w[f"abfs.{i}.conv1.0.weight"]), w, f"abfs.{i}.conv1.1")
        if residual is not None:
            y = nearest(residual, *x.shape[2:])
            z = conv(np.concatenate([x, y], 1), w[f"abfs.{i}.att_conv.0.weight"], w[f"abfs.{i}.att_conv.0.bias"])
            z = 1 / (1 + np.exp(-z))
            x = x * z[:, 0:1] + y * z[:, 1:2]
        residual = nearest(x, *f_t.shape[2:])
        out = batch_norm(conv(residual, w[f"abfs.{i}.conv2.0.weight"], pad=1), w, f"abfs.{i}.conv2.1")
        total += hcl(out, f_t)
    return total
