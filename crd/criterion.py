"""The NCE criterion of CRD (Tian et al., ICLR 2020, section 3)."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

EPS = 1e-7


class NCECriterion(nn.Module):
    """-log p_0 / (p_0 + c) - sum over K negatives of log c / (p_k + c), mean over B, both networks added.

    p = exp(score / T) / Z and c = K / N. Z is set on the first batch, to N times the mean of exp(score / T), and then
    kept; under torch.distributed it is the mean over processes.
    """

    z1: Tensor
    z2: Tensor

    def __init__(self, num_samples: int, temperature: float):
        super().__init__()
        self.num_samples, self.temperature = num_samples, temperature
        self.register_buffer("z1", torch.tensor(-1.0))  # for the student's anchors; negative: not set yet
        self.register_buffer("z2", torch.tensor(-1.0))

    def forward(self, scores_s: Tensor, scores_t: Tensor) -> Tensor:
        """Two [B, 1 + K] inner products, the positive in column 0 -> scalar."""
        scores_s, scores_t = scores_s / self.temperature, scores_t / self.temperature
        z1, z2 = self._normalisers(scores_s, scores_t)
        return self._loss(scores_s, z1) + self._loss(scores_t, z2)

    @torch.no_grad()
    def _normalisers(self, scores_s: Tensor, scores_t: Tensor) -> Tensor:
        """[2]. Every step measures Z and only the first keeps it: testing whether it is set would stall the device."""
        measured = torch.stack([scores_s.exp().mean(), scores_t.exp().mean()]) * self.num_samples
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(measured)
            measured /= dist.get_world_size()
        known = torch.stack([self.z1, self.z2])
        z = torch.where(known < 0, measured, known.to(measured.dtype))
        self.z1.copy_(z[0])
        self.z2.copy_(z[1])
        return z

    def _loss(self, scores: Tensor, z: Tensor) -> Tensor:
        c = (scores.shape[1] - 1) / self.num_samples
        log_p = scores - z.log()
        # log (p + c) = log c + log1p (p / c): for negatives p is near 0, where log (p + c) - log c loses precision
        above_noise = ((log_p.exp() + EPS) / c).log1p()
        return (above_noise.sum(1) - log_p[:, 0]).mean() + math.log(c)
