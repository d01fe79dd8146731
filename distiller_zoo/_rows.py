"""Losses of logits, row by row, that several methods share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from distiller_zoo._math import kl_rows, log_binary, non_target


def target_class(
    z_s: Tensor, z_t: Tensor, labels: Tensor, temperature: float, labels_t: Tensor | None = None
) -> Tensor:
    """[R] T^2 KL(b_t || b_s) of the two-way distributions, label against rest. labels_t: another class for the
    teacher."""
    log_b_s = log_binary(z_s / temperature, labels)
    log_b_t = log_binary(z_t / temperature, labels if labels_t is None else labels_t)
    return F.kl_div(log_b_s, log_b_t, reduction="none", log_target=True).sum(1) * temperature**2


def dkd_rows(z_s: Tensor, z_t: Tensor, labels: Tensor, parts: tuple[float, float], temperature: float) -> Tensor:
    """[R] alpha * TCKD + beta * NCKD of every row; parts: alpha and beta."""
    alpha, beta = parts
    tckd = target_class(z_s, z_t, labels, temperature)
    nckd = kl_rows(non_target(z_s, labels), non_target(z_t, labels), temperature)
    return alpha * tckd + beta * nckd


def target_rows(z_s: Tensor, z_t: Tensor, labels: Tensor) -> Tensor:
    """[R] -p_t[y] log p_s[y] at temperature 1."""
    column = labels[:, None]
    return -(z_t.softmax(1).gather(1, column) * z_s.log_softmax(1).gather(1, column)).squeeze(1)


def soft_cross_entropy(z_s: Tensor, z_t: Tensor, temperature: float) -> Tensor:
    """[R] -T^2 sum over classes of q_t log q_s, q: softmax at temperature T."""
    return -((z_t / temperature).softmax(1) * (z_s / temperature).log_softmax(1)).sum(1) * temperature**2
