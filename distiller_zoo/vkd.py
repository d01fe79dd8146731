"""VkD: Improving Knowledge Distillation using Orthogonal Projections (Miles et al., CVPR 2024): P f_s and LN(f_t)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from distiller_zoo.base import Distiller, pooled_tap
from helper.protocols import Batch, Context, Features, ModelSpec, Needs, Progress, Terms


class VkD(Distiller):
    """Mean smooth-L1 of P f_s - LayerNorm(f_t), where P keeps rows or columns orthonormal. f: pooled vectors [B, D].

    The layer norm has no parameters. The weight is 1: the paper gives none for CIFAR-100.
    """

    name = "vkd"

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        beta: float = 1.0
        authors: ClassVar[Mapping[str, float]] = {"div": 0.0}

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        (d_s,), (d_t,) = ctx.student.shapes["pooled"], ctx.teacher.shapes["pooled"]
        self.project = parametrizations.orthogonal(nn.Linear(d_s, d_t, bias=False))

    @classmethod
    def needs(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        return Needs((pooled_tap(student, cls.name),), (pooled_tap(teacher, cls.name),))

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        # bfloat16 would leave P orthogonal to two digits only
        with torch.autocast(s["pooled"].device.type, enabled=False):
            weight = self.project.weight
            projected = F.linear(s["pooled"].to(weight.dtype), weight)
        return {**s, "vkd.projected": projected}, t

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        target = F.layer_norm(t["pooled"], t["pooled"].shape[1:])
        return {"vkd": F.smooth_l1_loss(s["vkd.projected"], target)}
