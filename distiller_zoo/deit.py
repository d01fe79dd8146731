"""Training data-efficient image transformers (Touvron et al., ICML 2021): a token that learns from the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from core.option import option, positive
from core.protocols import Batch, Features, ModelSpec, Needs, Progress, Terms, UserError
from distiller_zoo._math import kl_rows
from distiller_zoo.base import OWN_LOGITS, LogitLoss

HEADS = ("class_logits", "distilled_logits")


def distillation(z_s: Tensor, z_t: Tensor, kind: str, temperature: float) -> Tensor:
    """[B] cross-entropy at the teacher's most likely class, or T^2 KL."""
    return F.cross_entropy(z_s, z_t.argmax(1), reduction="none") if kind == "hard" else kl_rows(z_s, z_t, temperature)


class DeiT(LogitLoss):
    """distillation() of the classifier behind the student's distillation token, mean over B; cls is that of the
    classifier behind its class token. What is deployed is the mean of both logits.

    The student has both: vit_*_distilled of this zoo or a *_distilled network of timm. For others, kd --hard is the
    hard loss of the paper. --deit_kind soft was published with -c 0.9 -b 0.1 --deit_T 3; the published code divides it
    by the number of classes, too: --deit_as_published.
    """

    name = "deit"

    @dataclass(frozen=True)
    class Config(LogitLoss.Config):
        cls: float = 0.5
        beta: float = 0.5
        kind: str = option("hard", "loss of the distillation token", "--deit_kind", choices=("hard", "soft"))
        temperature: float = option(3.0, "temperature of the soft loss", "--deit_T", check=positive)
        as_published: bool = option(False, "divide the soft loss by the number of classes, as the published code does")
        authors: ClassVar[Mapping[str, float]] = {}

    @classmethod
    def needs(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        if not set(HEADS) <= student.taps.keys():
            raise UserError(
                f"deit trains a distillation token, but {student.name} has none: choose vit_tiny_cifar_distilled or "
                "timm:deit_tiny_distilled_patch16_224, or --distill kd --hard"
            )
        return Needs(HEADS)

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        return {**s, OWN_LOGITS: s["class_logits"]}, t

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        z_s, z_t = s["distilled_logits"], t["logits"]
        rows = distillation(self.comparable(z_s), self.comparable(z_t), self.cfg.kind, self.cfg.temperature)
        loss = self.over_rows(rows, z_s, z_t)
        return {"deit": loss / z_s.shape[1] if self.cfg.as_published and self.cfg.kind == "soft" else loss}
