"""Teacher of DPCD (wsh081, code 2025): CE(p, y) + sum over heads of CE(q_l, y), on upright images."""

from __future__ import annotations

import torch.nn.functional as F

from core.protocols import Batch, Features, Progress, Terms
from distiller_zoo._heads import HeadTeacher, stacked
from distiller_zoo._math import labels_of


class DPCDTeacher(HeadTeacher):
    """Every cross-entropy is a mean over B."""

    name = "dpcd_teacher"

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        target = labels_of(batch) if batch.soft_target is None else batch.soft_target.repeat_interleave(batch.views, 0)
        num = len(self.heads)
        target = target.repeat(num, *[1] * (target.ndim - 1))
        return {"dpcd_teacher": num * F.cross_entropy(stacked(s, self.heads), target)}
