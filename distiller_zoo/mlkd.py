"""Multi-Level Logit Distillation (Jin et al., CVPR 2023): predictions agree per instance, per batch and per class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.option import option, within
from core.protocols import Batch, Context, Features, Progress, Terms, UserError
from dataset.images.randaugment import rand_augment
from distiller_zoo._math import kl, with_strong_view
from distiller_zoo.base import LogitLoss

TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)


def batch_correlation(p_s: Tensor, p_t: Tensor) -> Tensor:
    """||P_s P_s^T - P_t P_t^T||^2 / B of probabilities [B, K]."""
    return (p_s @ p_s.T - p_t @ p_t.T).pow(2).sum() / p_s.shape[0]


def class_correlation(p_s: Tensor, p_t: Tensor) -> Tensor:
    """||P_s^T P_s - P_t^T P_t||^2 / K of probabilities [B, K]."""
    return (p_s.T @ p_s - p_t.T @ p_t).pow(2).sum() / p_s.shape[1]


def alignment(z_s: Tensor, z_t: Tensor, relations: bool = True, row_weights: Tensor | None = None) -> Tensor:
    """Sum over the temperatures of T^2 KL + batch correlation + class correlation; logits [B, K] of one view.

    Without relations the T^2 KL alone. row_weights: [B], of the KL alone, as EA-KD has it.
    """
    parts = []
    for temperature in TEMPERATURES:
        p_s, p_t = (z_s / temperature).softmax(1), (z_t / temperature).softmax(1)
        parts += [kl(z_s, z_t, temperature, row_weights)]
        parts += [batch_correlation(p_s, p_t), class_correlation(p_s, p_t)] if relations else []
    return torch.stack(parts).sum()


class MLKD(LogitLoss):
    """alignment() of every view, summed: the batch as it comes, and a strong view of it, RandAugment(2, 10).

    Cross-entropy counts for both views (mlkd_cls is the strong one's). The published recipe goes with twice the images
    per step, --learning_rate 0.025 and 480 epochs in the paper's table (240 in the settings released later);
    --mlkd_views 1 is the comparison under the common protocol.
    The strong view starts from the weak one's crop; the published one is cropped again.
    The published confidence masks multiply a mean and so only halve the weak view's alignment: --mlkd_halved. The
    published code also computes the strong view's correlations and leaves them out of its sum: --mlkd_weak_relations.
    Its table was made with both.
    """

    name = "mlkd"
    reads_labels = True

    @dataclass(frozen=True)
    class Config(LogitLoss.Config):
        cls: float = 0.1
        beta: float = 0.9
        views: int = option(
            2,
            "1: only the batch; 2: also a strongly augmented view of it",
            "--mlkd_views",
            (1, 2),
            check=within(least=1, most=2),
        )
        halved: bool = option(False, "weigh the weak view's alignment 0.5, as the published code does", "--mlkd_halved")
        weak_relations: bool = option(
            False, "leave the strong view's correlations out, as the published code does", "--mlkd_weak_relations"
        )

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        self.rng = ctx.rng
        self.image = ctx.student.spec.input
        if cfg.views == 2 and len(ctx.student.spec.input_shape) != 3:
            raise UserError(
                f"mlkd augments images, but {ctx.student.spec.name} reads '{self.image}'; use --mlkd_views 1"
            )

    def prepare(self, batch: Batch) -> Batch:
        if self.cfg.views == 1:
            return batch
        return with_strong_view(batch, self.image, lambda x: rand_augment(x, self.rng), self.name)

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        z_s, z_t = self.comparable(s["logits"]), self.comparable(t["logits"])
        weak = 0.5 if self.cfg.halved else 1.0
        num = batch.views if self.cfg.views == 2 else 1  # frames of a clip are rows of one view
        row_weights = self.row_weights(s["logits"], t["logits"])
        views = [
            alignment(
                z_s[v::num],
                z_t[v::num],
                relations=v == 0 or not self.cfg.weak_relations,
                row_weights=None if row_weights is None else row_weights[v::num],
            )
            for v in range(num)
        ]
        terms = {"mlkd": weak * views[0] + sum(views[1:])}
        if num > 1 and self.cfg.cls:
            target = batch.target if batch.soft_target is None else batch.soft_target
            terms["mlkd_cls"] = self.cross_entropy(s["logits"][1::num], target)
        return terms

    def weights(self, progress: Progress) -> dict[str, float]:
        return {**super().weights(progress), "mlkd_cls": self.cfg.cls}
