"""Training without a teacher: cross-entropy alone."""

from __future__ import annotations

from dataclasses import dataclass

from distiller_zoo.base import Distiller


class Vanilla(Distiller):
    """Only cls, the cross-entropy of the student, mean over B."""

    name = "vanilla"
    teacher_mode = "absent"

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        div: float = 0.0
