"""Activation Boundaries (Heo et al., AAAI 2019, eq. 6): squared hinge where the signs of pre-activations differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.protocols import Batch, Context, Features, ModelSpec, Progress, Terms, UserError
from distiller_zoo._math import squared_error
from distiller_zoo._stages import paired_stages, preact, resizing_conv, shown, unequal_stages
from distiller_zoo.base import Distiller, StagePairs, WithoutKL

MARGIN = 1.0
SCALE = 3 / 1000  # of the published loss


class Connector(nn.Sequential):
    """A student's map in the shape of the teacher's; without ReLU, as values of both signs are needed."""

    def __init__(self, conv: nn.Module, c_t: int):
        super().__init__()
        self.conv, self.bn = conv, nn.BatchNorm2d(c_t)


def boundary(f_s: Tensor, f_t: Tensor) -> Tensor:
    """Sum over C, H, W and mean over B: the student must exceed the margin on the teacher's side of zero."""
    now = f_s.detach()
    wanted = torch.where(f_t > 0, now.clamp_min(MARGIN), now.clamp_max(-MARGIN))
    return squared_error(f_s, wanted, "sum") / len(f_s)


class ABInit(StagePairs):
    """First stage: the student's feature layers and a connector per stage, at every stage half the weight of the next.

    loss = 3 / 1000 * sum over n stages of 2^(i - n + 1) * boundary_i. No labels, no logits, no schedule.
    """

    name = "ab_init"

    def __init__(self, cfg: AB.Config, ctx: Context):
        super().__init__(cfg, ctx)
        student, teacher = ctx.student, ctx.teacher
        self.connectors = nn.ModuleList()
        for a, b in self.pairs:
            shape_s, shape_t = student.shapes[a], teacher.shapes[b]
            conv = resizing_conv(shape_s, shape_t)
            if conv is None:
                raise UserError(
                    f"ab cannot take {a} of {student.spec.name} ({shown(shape_s)}) to {b} of {teacher.spec.name} "
                    f"({shown(shape_t)}): a map must be twice as large as its partner, or at least as large"
                )
            same = shape_s == shape_t
            self.connectors.append(nn.Identity() if same else Connector(conv, shape_t[0]))

    @classmethod
    def pairs_of(cls, student: ModelSpec, teacher: ModelSpec | None) -> tuple[tuple[str, str], ...]:
        stages_s, stages_t = zip(*paired_stages(student, teacher, "ab"), strict=True)
        return tuple(zip(preact(student, stages_s, "ab"), preact(teacher, stages_t, "ab"), strict=True))

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        added = {f"ab_init.{a}": m(s[a]) for m, (a, _) in zip(self.connectors, self.pairs, strict=True)}
        return {**s, **added}, t

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        losses = [boundary(s[f"ab_init.{a}"], t[b]) for a, b in self.pairs]
        weights = [2.0 ** (i - len(losses) + 1) for i in range(len(losses))]
        return {"ab_init": SCALE * torch.stack([w * x for w, x in zip(weights, losses, strict=True)]).sum()}

    def weights(self, progress: Progress) -> dict[str, float]:
        return {"ab_init": 1.0}


class AB(Distiller):
    """Second stage: labels and logits only, starting from the student of the first stage, without the connectors."""

    name = "ab"
    before = ABInit

    @dataclass(frozen=True)
    class Config(WithoutKL):
        beta: float = 1.0  # part of the published run name; the second stage has no term of its own

    @classmethod
    def notes(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Sequence[str]:
        return (
            "ab: its own loss trains only the first stage (--init_epochs); --beta has no effect",
            *unequal_stages(student, teacher, cls.name),
        )
