"""Dual-Head Knowledge Distillation (Yang et al., 2024): a second classifier learns only from the teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.option import option, positive
from core.protocols import Batch, Context, Features, Gradients, ModelSpec, Needs, Part, Progress, Terms
from distiller_zoo._stages import Dropout, pooled_tap, refuse_single_samples
from distiller_zoo.base import Distiller

HIDDEN, DROPPED = 200, 0.1  # of the nonlinear head


def binary_kl(z_s: Tensor, z_t: Tensor, temperature: float) -> Tensor:
    """[B] T^2 sum over classes of KL(Bernoulli(sigmoid(z_t / T)) || Bernoulli(sigmoid(z_s / T)))."""
    s, t = z_s / temperature, z_t / temperature
    on = t.sigmoid() * (F.logsigmoid(t) - F.logsigmoid(s))
    return (on + (-t).sigmoid() * (F.logsigmoid(-t) - F.logsigmoid(-s))).sum(1) * temperature**2


def binary_kl_norm(z_s: Tensor, z_t: Tensor, temperature: float) -> Tensor:
    """[B] T^2 sum over classes of KL(Bernoulli(1 / 2) || Bernoulli(sigmoid((z_s - z_t) / T)))."""
    x = (z_s - z_t) / temperature
    return (-math.log(2) - 0.5 * F.logsigmoid(x) - 0.5 * F.logsigmoid(-x)).sum(1) * temperature**2


LOSSES = {"norm": binary_kl_norm, "plain": binary_kl}


class DHKD(Distiller):
    """binary_kl_norm() of a second classifier on the student's pooled vector, mean over B; it is dropped afterwards.

    If the gradients of cross-entropy and of this term have a negative inner product (over all parameters together), the
    second loses its component along the first. Published on ImageNet with -b 0.1 --dhkd_head linear --dhkd_plain.
    """

    name = "dhkd"
    reads_teacher_head = True

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        div: float = 0.0
        beta: float = 1.0
        loss: str = option(
            "norm", "binary KL of every class: norm, of logit differences; or plain", "--dhkd_loss", choices=LOSSES
        )
        head: str = option("mlp", "kind of the second classifier", "--dhkd_head", choices=("mlp", "linear"))
        temperature: float = option(2.0, "temperature", "--dhkd_T", check=positive)
        plain: bool = option(False, "do not change gradients with a negative inner product", "--dhkd_plain")

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        (width,) = ctx.student.shapes["pooled"]
        self.fc2: nn.Module = nn.Linear(width, ctx.num_classes)
        if cfg.head == "mlp":
            refuse_single_samples(ctx, self.name)
            self.fc2 = nn.Sequential(
                nn.Linear(width, HIDDEN),
                Dropout(DROPPED, ctx.rng),
                nn.BatchNorm1d(HIDDEN),
                nn.ReLU(),
                nn.Linear(HIDDEN, ctx.num_classes),
            )

    @classmethod
    def needs(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        return Needs((pooled_tap(student, cls.name),))

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        return {**s, "dhkd.logits": self.fc2(s["pooled"])}, t

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        rows = LOSSES[self.cfg.loss](s["dhkd.logits"], t["logits"], self.cfg.temperature)
        return {"dhkd": rows.mean()}

    def parts(self) -> tuple[Part, ...]:
        return () if self.cfg.plain else (Part("task"), Part("distillation", ("dhkd",)))

    def join_gradients(self, gradients: list[Gradients]) -> list[Gradients]:
        task, own = gradients
        both = [(a, b) for a, b in zip(task, own, strict=True) if a is not None and b is not None]
        square = torch.stack([a.pow(2).sum() for a in task if a is not None] or [torch.zeros(())]).sum()
        if not both:
            return gradients
        apart = torch.stack([(a * b).sum() for a, b in both]).sum().clamp(max=0) / square.clamp_min(1e-30)
        # also where the second loss has no gradient: the published one is 0 there, and loses the component as well
        shifted = [
            b if a is None else -apart * a if b is None else b - apart * a for a, b in zip(task, own, strict=True)
        ]
        return [task, shifted]
