"""Overhaul of Feature Distillation (Heo et al., ICCV 2019, eq. 3 to 5): partial L2 to the margin ReLU of f_t."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.protocols import Batch, Context, Features, ModelSpec, Progress, Terms
from distiller_zoo._math import pool_to_smaller, squared_error
from distiller_zoo._stages import preact
from distiller_zoo.base import StagePairs, WithoutKL


def margin_of(f_t: Tensor) -> Tensor:
    """[B, C, H, W] -> [1, C, 1, 1]: the mean of a channel's negative values over the batch (0 where it has none)."""
    dims = (0, 2, 3)
    num_negative = (f_t < 0).sum(dims, keepdim=True)
    return f_t.clamp_max(0).sum(dims, keepdim=True) / num_negative.clamp_min(1)


def partial_l2(f_s: Tensor, f_t: Tensor, margin: Tensor) -> Tensor:
    """Squared distance to max(f_t, margin), except where that is negative and the student lies below it already;
    sum over C, H, W, mean over B."""
    target = torch.maximum(f_t, margin)
    wanted = torch.where(target > 0, target, torch.minimum(f_s.detach(), target))
    return squared_error(f_s, wanted, "sum") / len(f_s)


class OFD(StagePairs):
    """Pre-activations of the deepest stages both have, the student's through a 1x1 convolution and batch norm.

    loss = sum over n stages of partial_l2_i / 2^(n - 1 - i). The larger map is pooled to the smaller first. The margin
    is measured on the teacher's own batch, as eq. 3 defines it; the published code guesses it from the batch norm
    in front, which ignores the shortcut that is added behind it.
    """

    name = "ofd"
    deepest = True

    @dataclass(frozen=True)
    class Config(WithoutKL):
        beta: float = 1e-3

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        self.connectors = nn.ModuleList()
        for a, b in self.pairs:
            conv = nn.Conv2d(ctx.student.shapes[a][0], c_t := ctx.teacher.shapes[b][0], 1, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out")
            self.connectors.append(nn.Sequential(conv, nn.BatchNorm2d(c_t)))

    @classmethod
    def pairs_of(cls, student: ModelSpec, teacher: ModelSpec | None) -> tuple[tuple[str, str], ...]:
        stages_s, stages_t = zip(*super().pairs_of(student, teacher), strict=True)
        return tuple(zip(preact(student, stages_s, cls.name), preact(teacher, stages_t, cls.name), strict=True))

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        added_s, added_t = {}, {}
        for connector, (a, b) in zip(self.connectors, self.pairs, strict=True):
            f_s, added_t[f"ofd.{b}"] = pool_to_smaller(s[a], t[b])
            added_s[f"ofd.{a}"] = connector(f_s)
        return {**s, **added_s}, {**t, **added_t}

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        loss = s["logits"].new_zeros(())
        for i, (a, b) in enumerate(self.pairs):
            f_s, f_t = s[f"ofd.{a}"], t[f"ofd.{b}"]
            loss = loss + partial_l2(f_s, f_t, margin_of(f_t)) / 2 ** (len(self.pairs) - 1 - i)
        return {"ofd": loss}
