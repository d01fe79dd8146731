"""A Gift from Knowledge Distillation (Yim et al., CVPR 2017, eq. 1 and 2): mean (G_s - G_t)^2, flow between layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor

from core.protocols import Batch, Context, Features, ModelSpec, Progress, Terms, UserError
from distiller_zoo._math import pool_to_smaller
from distiller_zoo._stages import require_equal_channels, unequal_stages
from distiller_zoo.base import Distiller, StagePairs, WithoutKL


def flow(top: Tensor, bottom: Tensor) -> Tensor:
    """[B, C, H, W] and [B, C', H', W'] -> [B, C, C']: mean over space of their products, the larger map pooled."""
    top, bottom = (f.flatten(2) for f in pool_to_smaller(top, bottom))
    return top @ bottom.mT / top.shape[2]


class FSPInit(StagePairs):
    """First stage: the student's feature layers alone. Mean over B, C, C', summed over consecutive maps."""

    name = "fsp_init"

    def __init__(self, cfg: FSP.Config, ctx: Context):
        super().__init__(cfg, ctx)
        require_equal_channels(ctx.student, ctx.teacher, self.pairs, "fsp")

    @classmethod
    def pairs_of(cls, student: ModelSpec, teacher: ModelSpec | None) -> tuple[tuple[str, str], ...]:
        """Stem and stages of both networks side by side, the shorter list deciding, as published."""
        feats_t = teacher.feats[:-1] if teacher is not None else ()
        maps = tuple(zip(student.feats[:-1], feats_t, strict=False))
        if len(maps) < 2:
            raise UserError(
                f"fsp relates consecutive maps: {student.name} has {len(student.feats[:-1])}, "
                f"{teacher.name if teacher else 'no teacher'} has {len(feats_t)}, but at least two are needed"
            )
        return maps

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        loss = s["logits"].new_zeros(())
        for (top_s, top_t), (bottom_s, bottom_t) in pairwise(self.pairs):
            loss = loss + F.mse_loss(flow(s[top_s], s[bottom_s]), flow(t[top_t], t[bottom_t]))
        return {"fsp_init": loss}

    def weights(self, progress: Progress) -> dict[str, float]:
        return {"fsp_init": 1.0}


class FSP(Distiller):
    """Second stage: labels and logits alone, starting from the student of the first stage."""

    name = "fsp"
    before = FSPInit

    @dataclass(frozen=True)
    class Config(WithoutKL):
        beta: float = 50.0  # part of the published run name; the second stage has no term of its own

    @classmethod
    def notes(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Sequence[str]:
        return (
            "fsp: its own loss trains only the first stage (--init_epochs); --beta has no effect",
            *unequal_stages(student, teacher, cls.name),
        )
