"""Teacher of DPCD (wsh081, code 2025): CE(p, y) + sum over heads of CE(q_l, y), on upright images."""

from __future__ import annotations

from core.protocols import Batch, Features, Progress, Terms
from distiller_zoo._heads import HeadTeacher


class DPCDTeacher(HeadTeacher):
    """Every cross-entropy is a mean over B."""

    name = "dpcd_teacher"

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        return {"dpcd_teacher": self.entropy_of_heads(s, batch)}
