"""VkD: Improving Knowledge Distillation using Orthogonal Projections (Miles et al., CVPR 2024): P f_s and LN(f_t)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.protocols import Batch, Context, Features, Progress, Terms
from distiller_zoo.base import PooledVectors


def orthonormal(weight: Tensor) -> Tensor:
    """[O, I] -> the Gram-Schmidt basis of its rows or its columns, whichever are fewer; any scale of it is the same.

    Not torch's parametrization: that keeps the signs of its Householder map in the weight, where weight decay moves
    them below 1 and the projection becomes 0; its other maps wait for the device.
    """
    rows, columns = weight.shape
    q, r = torch.linalg.qr(weight if rows >= columns else weight.mT)
    q = q * r.diagonal().sign()
    return q if rows >= columns else q.mT


class VkD(PooledVectors):
    """Mean smooth-L1 of P f_s - LayerNorm(f_t), P with orthonormal rows or columns. f: pooled vectors [B, D].

    The layer norm has no parameters. The weight 1, with a logit KL of weight 1 at temperature 1 (--protocol authors),
    is that released for ImageNet, RegNetY -> DeiT; nothing is published for CIFAR-100.
    """

    name = "vkd"

    @dataclass(frozen=True)
    class Config(PooledVectors.Config):
        beta: float = 1.0
        authors: ClassVar[Mapping[str, float]] = {"kd_T": 1.0}

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        (d_s,), (d_t,) = ctx.student.shapes["pooled"], ctx.teacher.shapes["pooled"]
        self.project = nn.Linear(d_s, d_t, bias=False)

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        # bfloat16 would leave P orthogonal to two digits only
        with torch.autocast(s["pooled"].device.type, enabled=False):
            weight = orthonormal(self.project.weight)
            projected = F.linear(s["pooled"].to(weight.dtype), weight)
        return {**s, "vkd.projected": projected}, t

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        target = F.layer_norm(t["pooled"], t["pooled"].shape[1:])
        return {"vkd": F.smooth_l1_loss(s["vkd.projected"], target)}
