"""Distilling the Knowledge in a Neural Network (Hinton et al., 2015, section 2): T^2 * KL(p_t || p_s)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from distiller_zoo.base import Distiller


class KD(Distiller):
    """Nothing but the common terms: cross-entropy (cls) and the softened KL divergence (div)."""

    name = "kd"

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        authors: ClassVar[Mapping[str, float]] = {"cls": 0.1, "div": 0.9}
