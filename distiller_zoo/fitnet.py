"""FitNets: Hints for Thin Deep Nets (Romero et al., ICLR 2015, eq. 3): mean (r(f_s) - f_t)^2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import nn

from core.option import option
from core.protocols import Batch, Context, Features, ModelSpec, Needs, Progress, Terms, UserError
from distiller_zoo._math import squared_error
from distiller_zoo._stages import resizing_conv
from distiller_zoo.base import Distiller


def hint_names(cfg: Any, student: ModelSpec, teacher: ModelSpec | None) -> tuple[str, str]:
    """Tap names of the hinted maps. The last entry of `feats` is a pooled vector and no map."""
    maps_s = student.feats[:-1]
    maps_t = teacher.feats[:-1] if teacher is not None else ()
    shared = min(len(maps_s), len(maps_t))
    if not 0 <= cfg.hint_layer < shared:
        known = ", ".join(f"{i} ({maps_s[i]} and {maps_t[i]})" for i in range(shared)) or "none"
        raise UserError(
            f"--hint_layer {cfg.hint_layer} is not a map that both {student.name} and "
            f"{teacher.name if teacher else 'no teacher'} have: choose from {known}"
        )
    return maps_s[cfg.hint_layer], maps_t[cfg.hint_layer]


class FitNet(Distiller):
    """Regresses one student map onto the teacher's, jointly with the other terms.

    The paper trains the hint as a first stage and sums over elements; the published toolboxes, and we, train jointly
    and take the mean over B, C, H, W. The regressor ends in a ReLU, as published.
    """

    name = "fitnet"

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        beta: float = 100.0
        hint_layer: int = option(
            1,
            "the feature used as hint: 0 is the stem, 1 the first stage, ...",
            "--hint_layer",
            choices=(0, 1, 2, 3, 4),
        )
        authors: ClassVar[Mapping[str, float]] = {"div": 0.0, "hint_layer": 2}

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        self.hint_s, self.hint_t = hint_names(cfg, ctx.student.spec, ctx.teacher.spec)
        shape_s, shape_t = ctx.student.shapes[self.hint_s], ctx.teacher.shapes[self.hint_t]
        self.shrink_teacher: nn.Module = nn.Identity()
        conv = resizing_conv(shape_s, shape_t)
        if conv is None:  # as the SimKD toolbox does; RepDistiller refuses
            conv = nn.Conv2d(shape_s[0], shape_t[0], 3, padding=1)
            self.shrink_teacher = nn.AdaptiveAvgPool2d(shape_s[1:])
        self.conv = conv
        self.bn = nn.BatchNorm2d(shape_t[0])

    @classmethod
    def needs(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        hint_s, hint_t = hint_names(cfg, student, teacher)
        return Needs((hint_s,), (hint_t,))

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        regressed = F.relu(self.bn(self.conv(s[self.hint_s])))
        return {**s, "fitnet.regressed": regressed}, {**t, "fitnet.hint": self.shrink_teacher(t[self.hint_t])}

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        return {"fitnet": squared_error(s["fitnet.regressed"], t["fitnet.hint"])}  # [B, C, H, W], mean over all
