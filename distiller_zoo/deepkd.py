"""DeepKD: A Deeply Decoupled and Denoised Knowledge Distillation Trainer (Huang et al., NeurIPS 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from core.option import not_negative, option, positive, within
from core.protocols import Batch, Context, Features, Part, Progress, Terms, UserError
from distiller_zoo._math import kl_rows, labels_of, non_target, warmed_up
from distiller_zoo._rows import target_class
from distiller_zoo.base import Distiller

LEAST = 0.05  # share of the classes that the dynamic mask begins with


def other_classes(z_s: Tensor, z_t: Tensor, labels: Tensor, temperature: float, top: int = 0) -> Tensor:
    """[B] T^2 KL among the classes that are not the label; with `top`, among those of the teacher's `top` largest."""
    if not top or top >= z_t.shape[1]:
        return kl_rows(non_target(z_s, labels), non_target(z_t, labels), temperature)
    classes = z_t.topk(top, 1).indices
    outside = classes == labels[:, None]  # the label counts among the largest, and is left out then
    z_s, z_t = (z.gather(1, classes).masked_fill(outside, -1e9) / temperature for z in (z_s, z_t))
    log_p, log_q = F.log_softmax(z_s, 1), F.log_softmax(z_t, 1)
    rows = (log_q.exp() * (log_q - log_p)).masked_fill(outside, 0).sum(1)
    return rows * temperature**2


def classes_in_mask(top: int, phases: tuple[int, ...], num_classes: int, progress: Progress) -> int:
    """The number of the teacher's largest classes that count. phases: two epochs; until the first the number rises from
    a twentieth of the classes to `top`, from the second on to all of them, both linearly; (): `top` throughout."""
    if not top or not phases:
        return top
    begin, end = phases
    if progress.epoch <= begin:
        least = min(LEAST * num_classes, top)
        return max(1, round(least + (top - least) * progress.epoch / begin))
    if progress.epoch <= end:
        return top
    return round(top + (num_classes - top) * (progress.epoch - end) / max(progress.epochs - end, 1))


class DeepKD(Distiller):
    """Cross-entropy, deepkd_target and deepkd_other, each with a momentum buffer: mu plus its own difference.

    deepkd_target: target_class(), deepkd_other: other_classes(), mean over B. --deepkd_form kd multiplies the second by
    the mean over B of 1 - p_t[y], as published (the paper multiplies row by row); dkd has weights instead, which rise
    over the first epochs. Weight decay goes with cross-entropy. The published optimiser gives cross-entropy the
    momentum of the target part, applies the target part last and lets weight decay go with it: --deepkd_as_published.
    Its code has no schedule of the mask, and no default has one. Defaults are those of resnet32x4 -> resnet8x4.
    """

    name = "deepkd"
    reads_labels = True
    reads_logits = True

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        div: float = 0.0
        beta: float = 1.0
        form: str = option("kd", "how the parts of the loss are weighed", "--deepkd_form", choices=("kd", "dkd"))
        alpha: float = option(1.0, "with dkd: weight of the target-class part", "--deepkd_alpha", check=not_negative)
        others: float = option(
            8.0, "with dkd: weight of the part of the other classes", "--deepkd_beta", check=not_negative
        )
        temperature: float = option(4.0, "temperature; published 1 on ImageNet", "--deepkd_T", check=positive)
        task: float = option(
            0.075, "value added to --momentum for cross-entropy", "--deepkd_task", check=within(least=-1, most=1)
        )
        target: float = option(
            -0.075,
            "value added to --momentum for the target-class part",
            "--deepkd_target",
            check=within(least=-1, most=1),
        )
        other: float = option(
            0.075,
            "value added to --momentum for the part of the other classes",
            "--deepkd_other",
            check=within(least=-1, most=1),
        )
        topk: int = option(
            0,
            "number of other classes that count, those with the teacher's largest logits; 0: all",
            "--deepkd_topk",
            check=not_negative,
        )
        phases: tuple[int, ...] = option(
            (),
            "two epochs: until the first, the number of counted classes grows from 5 % of the classes to "
            "--deepkd_topk; from the second on, it grows to all (default: constant)",
            "--deepkd_phases",
        )
        warmup: int = option(
            20, "with dkd: epochs over which the weights rise from 0", "--deepkd_warmup", check=not_negative
        )
        as_published: bool = option(False, "use the published optimiser, which exchanges two momenta")
        authors: ClassVar[Mapping[str, float]] = {"cls": 0.5}

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.phases and not (self.topk and len(self.phases) == 2 and 0 < self.phases[0] <= self.phases[1]):
                given = " ".join(map(str, self.phases))
                raise UserError(f"--deepkd_phases {given} must be two epochs in order, and needs --deepkd_topk")

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        self.follows_time = bool(cfg.phases)  # type: ignore[misc]

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        z_s, z_t, labels = self.comparable(s["logits"]), self.comparable(t["logits"]), labels_of(batch)
        cfg = self.cfg
        top = classes_in_mask(cfg.topk, cfg.phases, z_t.shape[1], progress)
        target = target_class(z_s, z_t, labels, cfg.temperature).mean()
        other = other_classes(z_s, z_t, labels, cfg.temperature, top).mean()
        if cfg.form == "kd":
            p_t = (z_t / cfg.temperature).softmax(1)
            other = other * (1 - p_t.gather(1, labels[:, None])).mean()
        return {"deepkd_target": target, "deepkd_other": other}

    def weights(self, progress: Progress) -> dict[str, float]:
        alpha, others = self.cfg.beta, self.cfg.beta
        if self.cfg.form == "dkd":
            ramp = warmed_up(progress.epoch, self.cfg.warmup)
            alpha, others = alpha * ramp * self.cfg.alpha, others * ramp * self.cfg.others
        return {**super().weights(progress), "deepkd_target": alpha, "deepkd_other": others}

    def parts(self) -> tuple[Part, ...]:
        cfg = self.cfg
        other = Part("other", ("deepkd_other",), cfg.other)
        if cfg.as_published:
            return Part("task", None, cfg.target), other, Part("target", ("deepkd_target",), cfg.target, decays=True)
        return Part("task", None, cfg.task, decays=True), Part("target", ("deepkd_target",), cfg.target), other
