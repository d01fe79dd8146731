"""Teacher of HSAKD (Yang et al., IJCAI 2021): CE(p, y) + sum over heads of CE(q_l, 4 y + k), on rotated images."""

from __future__ import annotations

from dataclasses import dataclass

from core.protocols import Batch, Features, Progress, Terms
from distiller_zoo._heads import HeadTeacher, Rotated


class HSAKDTeacher(Rotated, HeadTeacher):
    """Cross-entropy of the upright images, mean over B; of every head over all views, mean over B*V."""

    name = "hsakd_teacher"

    @dataclass(frozen=True)
    class Config(Rotated.Config, HeadTeacher.Config):
        pass

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        return {"hsakd_teacher": self.joint_entropy(s, self.heads, batch)}
