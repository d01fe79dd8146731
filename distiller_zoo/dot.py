"""DOT: A Distillation-Oriented Trainer (Zhao et al., ICCV 2023): a momentum for each of two losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from core.option import option, probability
from core.protocols import Part
from distiller_zoo.base import Distiller


class DOT(Distiller):
    """Only the common terms, with two momentum buffers: mu - delta for cls, mu + delta for all other terms, including
    those of other methods (dkd+dot; with mlkd also the strong view's cross-entropy, mlkd_cls). mu is --momentum.

    The two gradients are computed separately; weight decay is added to that of cross-entropy.
    """

    name = "dot"

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        delta: float = option(
            0.075,
            "value added to --momentum for distillation and subtracted for cross-entropy; published 0.09 on ImageNet",
            "--dot_delta",
            check=probability,
        )
        authors: ClassVar[Mapping[str, float]] = {"cls": 0.1, "div": 0.9}

    def parts(self) -> tuple[Part, ...]:
        return Part("task", ("cls",), -self.cfg.delta, decays=True), Part("distillation", None, self.cfg.delta)
