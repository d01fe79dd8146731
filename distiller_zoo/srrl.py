"""Knowledge Distillation via Softmax Regression Representation Learning (Yang et al., ICLR 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn

from core.protocols import Batch, Context, Features, Progress, Terms, UserError
from distiller_zoo._stages import head_width, refuse_single_samples
from distiller_zoo.base import PooledVectors


class SRRL(PooledVectors):
    """mean (g - f_t)^2 + mean (W_t(g) - z_t)^2, where g = transfer(f_s) and W_t is the teacher's frozen classifier.

    f_s, f_t: pooled vectors [B, D]; both means run over all elements.
    """

    name = "srrl"
    reads_teacher_head = True

    @dataclass(frozen=True)
    class Config(PooledVectors.Config):
        beta: float = 1.0

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        (d_s,), (d_t,) = ctx.student.shapes["pooled"], ctx.teacher.shapes["pooled"]
        if d_t != (width := head_width(ctx.teacher)):
            raise UserError(
                f"srrl feeds the classifier of {ctx.teacher.spec.name}, which reads {width} values, while "
                f"its pooled feature has {d_t}; choose a teacher whose classifier reads that feature"
            )
        refuse_single_samples(ctx, self.name)
        self.transfer = nn.Sequential(nn.Conv2d(d_s, d_t, 1, bias=False), nn.BatchNorm2d(d_t), nn.ReLU())
        self.teacher_head = ctx.teacher.head.requires_grad_(False)

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        vector = self.transfer(s["pooled"][:, :, None, None]).flatten(1)
        return {**s, "srrl.vector": vector, "srrl.logits": self.teacher_head(vector)}, t

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        return {"srrl": F.mse_loss(s["srrl.vector"], t["pooled"]) + F.mse_loss(s["srrl.logits"], t["logits"])}
