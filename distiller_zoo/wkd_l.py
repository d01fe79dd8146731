"""Wasserstein Distance Rivals Kullback-Leibler Divergence for KD (Lv et al., NeurIPS 2024, WKD-L): transport."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from core.option import not_negative, option, positive
from core.protocols import Batch, Context, Features, Progress, Side, Terms, UserError
from distiller_zoo._math import labels_of
from distiller_zoo._rows import target_rows
from distiller_zoo.base import LogitLoss

ENTROPY = 0.05  # epsilon, the weight of the entropy in the transport
ITERATIONS = 10
FLOOR = 1e-8  # of costs, and of what is divided by


def cka_distances(features: Tensor) -> Tensor:
    """[K, n, D] -> [K, K] 1 - linear CKA of the classes' features; row r of one class pairs with row r of another.

    D x D products, one class against all at a time.
    """
    x = features - features.mean(1, keepdim=True)

    def similarity(i: int) -> Tensor:
        return (x.mT @ x[i]).flatten(1).norm(dim=1).pow(2)  # [K] of ||X_j^T X_i||^2

    products = torch.stack([similarity(i) for i in range(len(x))])
    own = products.diagonal().sqrt()
    return 1 - products / (own[:, None] * own).clamp_min(1e-12)


def classifier_distances(side: Side) -> Tensor:
    """[K, K] 1 - cosine of the rows of a linear classifier."""
    if not isinstance(side.head, torch.nn.Linear):
        raise UserError(
            f"--wkd_l_cost classifier compares the rows of a linear classifier, but that of {side.spec.name} is "
            "not linear: give a file of class distances"
        )
    unit = F.normalize(side.head.weight.detach(), dim=1)
    return 1 - unit @ unit.T


def read_distances(path: str, num_classes: int) -> Tensor:
    """[K, K] from a file that torch.save wrote: the distances themselves, or class features [K, n, D]."""
    if not Path(path).is_file():
        raise UserError(f"--wkd_l_cost {path} is neither 'classifier' nor a file")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on foreign bytes the unpickler raises almost any exception
        raise UserError(
            f"--wkd_l_cost {path} is truncated or not a file that torch.save wrote ({type(error).__name__}): write it "
            "with scripts/class_distances.py"
        ) from error
    if isinstance(found, Tensor) and found.ndim == 3:
        found = cka_distances(found.float())
    if not isinstance(found, Tensor) or found.shape != (num_classes, num_classes):
        raise UserError(
            f"--wkd_l_cost {path} must hold a tensor [{num_classes}, {num_classes}] or [{num_classes}, n, D]"
        )
    return found.float()


def transport(z_s: Tensor, z_t: Tensor, cost: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """[B] cost of moving the student's distribution to the teacher's, both over the classes that are not the label.

    Sinkhorn iterations, with gradient. z_s, z_t: [B, K]; cost: [K, K]. One kernel serves the whole batch: masses and
    start are 0 at the label, so its row and column never count; the published code cuts them out of B copies.
    """
    label = labels[:, None] == torch.arange(z_s.shape[1], device=z_s.device)
    q_s, q_t = ((z / temperature).masked_fill(label, float("-inf")).softmax(1) for z in (z_s, z_t))
    cost = cost.clamp_min(0) + FLOOR
    kernel = (-cost / ENTROPY).exp()
    u = label.logical_not().to(z_s.dtype) / (z_s.shape[1] - 1)
    for _ in range(ITERATIONS):
        v = q_t / (u @ kernel + FLOOR)
        u = q_s / (v @ kernel.T + FLOOR)
    return (u @ (kernel * cost) * v).sum(1)


class WKDL(LogitLoss):
    """Two terms, mean over B: wkd_l, transport() at temperature T; wkd_l_target, -p_t[y] log p_s[y] at temperature 1.

    The cost of a pair of classes is 1 - exp(-kappa * distance). The paper's distance is 1 - CKA of the teacher's
    features of the training images, per class: --wkd_l_cost FILE, which scripts/class_distances.py writes. The
    default is the published fallback, 1 - cosine of the rows of the teacher's classifier, which needs no file.
    beta weighs wkd_l; it stays up to an epoch and falls to 0 by a half cosine, while the target's weight stays.
    Defaults are those of resnet32x4 -> resnet8x4.
    """

    name = "wkd_l"
    reads_labels = True

    @dataclass(frozen=True)
    class Config(LogitLoss.Config):
        beta: float = 600.0
        target: float = option(1.0, "weight of the target-class part", "--wkd_l_target", check=not_negative)
        temperature: float = option(
            8.0, "temperature of the transport; published 2 on ImageNet", "--wkd_l_T", check=positive
        )
        kappa: float = option(
            1.0, "sharpness of the costs; 0: the distances themselves", "--wkd_l_kappa", check=not_negative
        )
        constant: int = option(
            150,
            "epochs after which the transport's weight begins to fall; published 0 and 30 on ImageNet",
            "--wkd_l_constant",
            check=not_negative,
        )
        cost: str = option(
            "classifier",
            "distances of classes: 'classifier', or a file with a tensor [K, K] of them or [K, n, D] of the teacher's "
            "features of n images per class",
            "--wkd_l_cost",
        )

    cost: Tensor

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        from_file = cfg.cost != "classifier"
        distances = read_distances(cfg.cost, ctx.num_classes) if from_file else classifier_distances(ctx.teacher)
        cost = 1 - (-cfg.kappa * distances).exp() if cfg.kappa else distances
        self.register_buffer("cost", cost, persistent=False)

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        z_s, z_t, labels = self.comparable(s["logits"]), self.comparable(t["logits"]), labels_of(batch)
        rows = transport(z_s, z_t, self.cost, labels, self.cfg.temperature)
        return {
            "wkd_l": self.over_rows(rows, s["logits"], t["logits"]),
            "wkd_l_target": self.over_rows(target_rows(z_s, z_t, labels), s["logits"], t["logits"]),
        }

    def weights(self, progress: Progress) -> dict[str, float]:
        left = max(progress.epochs - self.cfg.constant, 1)
        done = min(max(progress.epoch - self.cfg.constant, 0) / left, 1.0)
        decay = 0.5 * (1 + math.cos(math.pi * done))
        return {**super().weights(progress), "wkd_l": self.cfg.beta * decay, "wkd_l_target": self.cfg.target}
