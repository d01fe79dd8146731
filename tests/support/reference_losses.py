"""Every loss once more, literally: numpy, float64, explicit loops, nothing of the project.

Written to be compared with an equation by eye. Maps are [B, C, H, W], vectors [B, D], logits [B, K]. `w` is a
dictionary of arrays under the published key names. Batch norm is in train mode: statistics of the batch, variance not
corrected.
"""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray as A

W = dict[str, A]

# ------------------------------------------------------------------ layers


def softmax(z: A) -> A:
    e = np.exp(z - z.max())
    return e / e.sum()


def relu(x: A) -> A:
    return np.maximum(x, 0.0)


def linear(x: A, w: W, key: str) -> A:
    return np.array(
        [
            [
                sum(w[f"{key}.weight"][o, i] * row[i] for i in range(len(row))) + w[f"{key}.bias"][o]
                for o in range(len(w[f"{key}.bias"]))
            ]
            for row in x
        ]
    )


def conv(x: A, weight: A, bias: A | None = None, stride: int = 1, pad: int = 0) -> A:
    """y[b, o, p, q] = sum over i, u, v of weight[o, i, u, v] * x[b, i, p * stride + u - pad, q * stride + v - pad]."""
    b, _, h, w = x.shape
    o, _, k_h, k_w = weight.shape
    padded = np.zeros((b, x.shape[1], h + 2 * pad, w + 2 * pad))
    padded[:, :, pad : pad + h, pad : pad + w] = x
    y = np.zeros((b, o, (h + 2 * pad - k_h) // stride + 1, (w + 2 * pad - k_w) // stride + 1))
    for p in range(y.shape[2]):
        for q in range(y.shape[3]):
            window = padded[:, :, p * stride : p * stride + k_h, q * stride : q * stride + k_w]
            y[:, :, p, q] = np.einsum("biuv,oiuv->bo", window, weight)
    return y if bias is None else y + bias[None, :, None, None]


def transposed_conv(x: A, weight: A, bias: A, stride: int, pad: int) -> A:
    """Every input pixel paints weight[i, o] around place * stride - pad."""
    b, c, h, w = x.shape
    _, o, k, _ = weight.shape
    y = np.zeros((b, o, (h - 1) * stride + k, (w - 1) * stride + k))
    for p in range(h):
        for q in range(w):
            painted = np.einsum("bi,iouv->bouv", x[:, :, p, q], weight)
            y[:, :, p * stride : p * stride + k, q * stride : q * stride + k] += painted
    return y[:, :, pad : y.shape[2] - pad, pad : y.shape[3] - pad] + bias[None, :, None, None]


def batch_norm(x: A, w: W, key: str) -> A:
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        mean, var = x[:, c].mean(), x[:, c].var()
        y[:, c] = (x[:, c] - mean) / math.sqrt(var + 1e-5) * w[f"{key}.weight"][c] + w[f"{key}.bias"][c]
    return y


def pool(x: A, h: int, w: int) -> A:
    """Adaptive average: output bin p covers rows floor(p H / h) to ceil((p + 1) H / h)."""
    y = np.zeros((*x.shape[:2], h, w))
    for p in range(h):
        for q in range(w):
            rows = slice(p * x.shape[2] // h, -(-(p + 1) * x.shape[2] // h))
            columns = slice(q * x.shape[3] // w, -(-(q + 1) * x.shape[3] // w))
            y[:, :, p, q] = x[:, :, rows, columns].mean((2, 3))
    return y


def match(f_s: A, f_t: A) -> tuple[A, A]:
    """The larger map pooled to the smaller."""
    if f_s.shape[2] > f_t.shape[2]:
        return pool(f_s, *f_t.shape[2:]), f_t
    return f_s, pool(f_t, *f_s.shape[2:])


def mean_square(a: A, b: A) -> float:
    assert a.shape == b.shape
    return float(sum((x - y) ** 2 for x, y in zip(a.ravel(), b.ravel(), strict=True)) / a.size)


# ------------------------------------------------------------------ losses


def cross_entropy(z: A, y: A) -> float:
    return -sum(math.log(softmax(z[b])[y[b]]) for b in range(len(z))) / len(z)


def kd(z_s: A, z_t: A, temperature: float) -> float:
    """T^2 / B * sum_b sum_k p_t log(p_t / p_s)."""
    total = 0.0
    for b in range(len(z_s)):
        p_s, p_t = softmax(z_s[b] / temperature), softmax(z_t[b] / temperature)
        for k in range(len(p_s)):
            total += p_t[k] * math.log(p_t[k] / p_s[k])
    return temperature**2 * total / len(z_s)


def fitnet(f_s: A, f_t: A, w: W) -> float:
    h_s, h_t, w_s, w_t = f_s.shape[2], f_t.shape[2], f_s.shape[3], f_t.shape[3]
    if h_s == 2 * h_t:
        r = conv(f_s, w["conv.weight"], w["conv.bias"], stride=2, pad=1)
    elif 2 * h_s == h_t:
        r = transposed_conv(f_s, w["conv.weight"], w["conv.bias"], stride=2, pad=1)
    elif h_s >= h_t:
        assert w["conv.weight"].shape[2:] == (1 + h_s - h_t, 1 + w_s - w_t)
        r = conv(f_s, w["conv.weight"], w["conv.bias"])
    else:
        r = conv(f_s, w["conv.weight"], w["conv.bias"], pad=1)
        f_t = pool(f_t, h_s, w_s)
    return mean_square(relu(batch_norm(r, w, "bn")), f_t)


def at(maps_s: list[A], maps_t: list[A]) -> float:
    def q(f: A) -> A:
        rows = np.array(
            [[np.mean(f[b, :, p, r] ** 2) for p in range(f.shape[2]) for r in range(f.shape[3])] for b in range(len(f))]
        )
        return np.array([row / math.sqrt((row**2).sum()) for row in rows])

    total = 0.0
    for f_s, f_t in zip(maps_s, maps_t, strict=False):
        a, b = match(f_s, f_t)
        total += mean_square(q(a), q(b))
    return total


def sp(f_s: A, f_t: A) -> float:
    def gram(f: A) -> A:
        n = len(f)
        g = np.array([[(f[i] * f[j]).sum() for j in range(n)] for i in range(n)])
        return np.array([row / math.sqrt((row**2).sum()) for row in g])

    return float(((gram(f_t) - gram(f_s)) ** 2).sum() / len(f_s) ** 2)


def vid(f_s: A, f_t: A, w: W) -> float:
    f_s, f_t = match(f_s, f_t)
    mu = conv(f_s, w["regressor.0.weight"])
    mu = conv(relu(mu), w["regressor.2.weight"])
    mu = conv(relu(mu), w["regressor.4.weight"])
    total = 0.0
    for c in range(f_t.shape[1]):
        v = math.log(1 + math.exp(w["log_scale"][c])) + 1e-5
        total += float((0.5 * ((mu[:, c] - f_t[:, c]) ** 2 / v + math.log(v))).sum())
    return total / f_t.size


def srrl(f_s: A, f_t: A, z_t: A, w: W, head: W) -> float:
    g = relu(batch_norm(conv(f_s[:, :, None, None], w["transfer.0.weight"]), w, "transfer.1"))[:, :, 0, 0]
    return mean_square(g, f_t) + mean_square(linear(g, head, "fc"), z_t)


def semckd(maps_s: list[A], maps_t: list[A], w: W, soft: float) -> float:
    n = len(maps_s[0])

    def embed(f: A, key: str) -> A:
        relation = np.array([[(f[a] * f[b]).sum() for b in range(n)] for a in range(n)])
        e = linear(relu(linear(relation, w, f"{key}.linear1")), w, f"{key}.linear2")
        return np.array([row / math.sqrt((row**2).sum()) for row in e])

    queries = [embed(f, f"query_{i}") for i, f in enumerate(maps_s)]
    keys = [embed(f, f"key_{j}") for j, f in enumerate(maps_t)]
    total = 0.0
    for i, f_s in enumerate(maps_s):
        for j, f_t in enumerate(maps_t):
            a, target = match(f_s, f_t)
            key = f"regressor{i}{j}.regressor"
            a = relu(batch_norm(conv(a, w[f"{key}.0.weight"]), w, f"{key}.1"))
            a = relu(batch_norm(conv(a, w[f"{key}.3.weight"], pad=1), w, f"{key}.4"))
            a = conv(a, w[f"{key}.6.weight"])
            for b in range(n):
                alpha = softmax(np.array([queries[i][b] @ k[b] for k in keys]) / soft)[j]
                total += alpha * mean_square(a[b], target[b])
    return total / (n * len(maps_s))


def simkd(f_s: A, f_t: A, w: W, head: W) -> tuple[float, A]:
    """The loss, and the logits that are deployed."""
    f_s, f_t = match(f_s, f_t)
    x = relu(batch_norm(conv(f_s, w["transfer.0.weight"]), w, "transfer.1"))
    x = relu(batch_norm(conv(x, w["transfer.3.weight"], pad=1), w, "transfer.4"))
    x = relu(batch_norm(conv(x, w["transfer.6.weight"]), w, "transfer.7"))
    return mean_square(x, f_t), linear(x.mean((2, 3)), head, "fc")


def crd(f_s: A, f_t: A, w: W, memory_v1: A, memory_v2: A, places: A, temperature: float) -> float:
    """places: [B, 1 + K], column 0 the positive. The first call: Z comes from these scores."""

    def embed(f: A, key: str) -> A:
        return np.array([row / math.sqrt((row**2).sum()) for row in linear(f, w, key)])

    n, k = len(memory_v1), places.shape[1] - 1

    def one_side(v: A, memory: A) -> float:
        out = np.array([[math.exp(v[b] @ memory[j] / temperature) for j in places[b]] for b in range(len(v))])
        p = out / (out.mean() * n)
        m, total = k / n, 0.0
        for b in range(len(v)):
            total += math.log(p[b, 0] / (p[b, 0] + m + 1e-7))
            total += sum(math.log(m / (p[b, j] + m + 1e-7)) for j in range(1, k + 1))
        return -total / len(v)

    return one_side(embed(f_s, "embed_s.linear"), memory_v2) + one_side(embed(f_t, "embed_t.linear"), memory_v1)


def crd_update(memory: A, index: A, v: A, momentum: float) -> A:
    """The bank after a step."""
    memory = memory.copy()
    for y, row in zip(index, v, strict=True):
        moved = momentum * memory[y] + (1 - momentum) * row
        memory[y] = moved / math.sqrt((moved**2).sum())
    return memory
