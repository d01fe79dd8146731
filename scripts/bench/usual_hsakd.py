"""The baseline of bench_hsakd.py: HSAKD's and DPCD's student steps the way the published code runs them.

Float32, contiguous NCHW, every head of both networks computed, a Python loop over heads (DPCD: over pairs, each with
softmaxes of its own), the confidence history on the host, losses and accuracies of all heads read before the next step.
It uses this project's network classes and none of its step, taps or methods.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.protocols import ModelSpec
from scripts.bench.usual_way import UsualStep, WithFeatures, top_k


def distill_kl(z_s: Tensor, z_t: Tensor, temperature: float) -> Tensor:
    log_p, q = F.log_softmax(z_s / temperature, 1), F.softmax(z_t / temperature, 1)
    return F.kl_div(log_p, q.detach(), reduction="batchmean") * temperature**2


def correct(logits: Tensor, target: Tensor) -> list[float]:
    return [share.item() for share in top_k(logits, target)]


class WithHeads(WithFeatures):
    """forward(x) -> ([head logits], logits), every head always computed, as the published networks do."""

    def __init__(self, model: nn.Module, spec: ModelSpec):
        nn.Module.__init__(self)
        self.model, self.branches, self.feats = model, spec.branches, []
        for name in spec.branches:
            model.parts(name)[-1].register_forward_hook(lambda module, args, out: self.feats.append(out))

    def logits(self, x: Tensor) -> Tensor:
        return self.model(x, self.branches)


class UsualHSAKD(UsualStep):
    wrapper, nesterov = WithHeads, True

    def __init__(self, *args: Any):
        super().__init__(*args)
        torch.backends.cudnn.allow_tf32 = True  # torch's default, which published code leaves alone
        self.right = np.zeros((len(self.student.branches) + 1, 4))

    def finish(self, parts: list[Tensor], count: int) -> float:
        loss = torch.stack(parts).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        values = [loss.item(), *(part.item() for part in parts)]
        self.sums["loss"] += values[0] * count
        return values[0]

    def __call__(self, images: Tensor, target: Tensor) -> float:
        x = torch.stack([torch.rot90(images, k, (2, 3)) for k in range(4)], 1).flatten(0, 1)
        joint = torch.stack([4 * target + k for k in range(4)], 1).flatten()
        heads, logits = self.student(x)
        with torch.no_grad():
            heads_t, logits_t = self.teacher(x)
        div = torch.zeros(())
        for q_s, q_t in zip(heads, heads_t, strict=True):
            div = div + distill_kl(q_s, q_t, 3.0)
        parts = [F.cross_entropy(logits[::4], target), div + distill_kl(logits, logits_t, 3.0)]
        value = self.finish(parts, len(target))
        for i, q in enumerate(heads):
            collapsed = q.view(len(q), -1, 4).sum(2)
            self.right[i] += [*correct(q, joint), *correct(collapsed, target.repeat_interleave(4))]
        self.right[-1, :2] += correct(logits[::4], target)
        return value


class UsualDPCD(UsualHSAKD):
    """Epoch 61, for the ramp."""

    epoch = 60

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.history: deque[float] = deque(maxlen=2000)
        self.mean = 0.0

    @staticmethod
    def binary(z: Tensor, mask: Tensor) -> Tensor:
        p = F.softmax(z, 1)
        return torch.stack([(p * mask).sum(1), (p * (1 - mask)).sum(1)], 1)

    def dynamic(self, z_s: Tensor, z_t: Tensor, target: Tensor, temperature: float = 3.0) -> Tensor:
        mask = F.one_hot(target, z_s.shape[1]).float()
        confidence = F.softmax(z_t, 1).gather(1, target[:, None]).squeeze(1)
        first = not self.history
        self.history.extend(confidence.cpu().tolist())
        now = confidence.mean().item()
        self.mean = now if first else 0.9 * self.mean + 0.1 * now
        tau = float(np.quantile(self.history, 0.65)) if len(self.history) >= 2000 else 0.6
        rho = 1 / (1 + np.exp(-18 * (tau - self.mean)))
        alpha, beta = float(np.clip(1 + rho, 0.5, 2)), float(np.clip(6 * (1 - 0.5 * rho), 5, 8))
        b_s, b_t = self.binary(z_s / temperature, mask), self.binary(z_t / temperature, mask)
        tckd = F.kl_div(b_s.log(), b_t, reduction="batchmean") * temperature**2
        n_s, n_t = (F.log_softmax(z_s / temperature - 1000 * mask, 1), F.softmax(z_t / temperature - 1000 * mask, 1))
        nckd = F.kl_div(n_s, n_t, reduction="batchmean") * temperature**2
        return min(self.epoch / 20, 1) * (alpha * tckd + beta * nckd)

    def consensus(self, z_s: Tensor, z_t: Tensor, target: Tensor, temperature: float = 3.0) -> Tensor:
        mask = F.one_hot(target, z_s.shape[1]).float()
        b_s, b_t = self.binary(z_s / temperature, mask), self.binary(z_t / temperature, mask)
        tckd = F.kl_div((b_s + 1e-8).log(), b_t, reduction="batchmean") * temperature**2
        with torch.no_grad():
            p_s, p_t = F.softmax(z_s / temperature, 1), F.softmax(z_t / temperature, 1)
            omega = (p_s * p_t * (1 - mask) + 1e-8).sqrt().pow(2).sum(1)
            n_t = F.softmax(z_t / temperature - 1000 * mask, 1)
        n_s = F.log_softmax(z_s / temperature - 1000 * mask, 1)
        rows = F.kl_div(n_s, n_t, reduction="none").sum(1)
        return tckd + 8 * (omega * rows).mean() * temperature**2

    def __call__(self, images: Tensor, target: Tensor) -> float:
        heads, logits = self.student(images)
        with torch.no_grad():
            _, logits_t = self.teacher(images)
        cls = F.cross_entropy(logits, target)
        for q in heads:
            cls = cls + F.cross_entropy(q, target)
        div, ced, num = self.dynamic(logits, logits_t, target), torch.zeros(()), len(heads)
        for i in range(num - 1):
            for j in range(i, num):
                ced = ced + self.consensus(heads[j], heads[i], target)
        for q in heads:
            ced = ced + self.consensus(logits, q, target)
        value = self.finish([cls, div, ced], len(target))
        for _ in range(2):  # the published loop counts the same accuracies twice
            for i, z in enumerate((*heads, logits)):
                self.right[i, :2] += correct(z, target)
        return value
