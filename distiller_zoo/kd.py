"""Distilling the Knowledge in a Neural Network (Hinton et al., 2015, section 2): T^2 * KL(p_t || p_s)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from core.option import option
from distiller_zoo.base import Distiller


class KD(Distiller):
    """Only the common terms: cross-entropy (cls) and the softened KL divergence (div).

    With --hard, div is the cross-entropy of the student at the teacher's most likely class (hard-label distillation,
    Touvron et al., ICML 2021, equation 3; published with -c 0.5 -d 0.5).
    """

    name = "kd"

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        hard: bool = option(False, "use the teacher's most likely class as a label", "--hard")
        authors: ClassVar[Mapping[str, float]] = {"cls": 0.1, "div": 0.9}

    def div_rows(self, z_s: Tensor, z_t: Tensor) -> Tensor | None:
        if not self.cfg.hard:
            return super().div_rows(z_s, z_t)
        return F.cross_entropy(self.comparable(z_s), z_t.argmax(1), reduction="none")
