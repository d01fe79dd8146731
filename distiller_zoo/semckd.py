"""Cross-Layer Distillation with Semantic Calibration (Chen et al., AAAI 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.option import option, positive
from core.protocols import Batch, Context, Features, ModelSpec, Needs, Progress, Terms, UserError
from distiller_zoo._math import pool_to_smaller, squared_error
from distiller_zoo.base import Distiller


class Embed(nn.Module):
    """Row-wise MLP on relation matrices [B, B] -> [B, B // 4], rows of unit length."""

    def __init__(self, batch_size: int):
        super().__init__()
        width = batch_size // 4
        self.linear1 = nn.Linear(batch_size, 2 * width)
        self.linear2 = nn.Linear(2 * width, width)

    def forward(self, f: Tensor) -> Tensor:
        flat = f.flatten(1).to(self.linear1.weight.dtype)
        return F.normalize(self.linear2(F.relu(self.linear1(flat @ flat.T))))


class Projection(nn.Sequential):
    """One student stage in the channels of one teacher stage: [B, C_s, H, W] -> [B, C_t, H, W]."""

    def __init__(self, c_s: int, c_t: int):
        super().__init__()
        self.regressor = nn.Sequential(
            nn.Conv2d(c_s, 2 * c_t, 1, bias=False),
            nn.BatchNorm2d(2 * c_t),
            nn.ReLU(),
            nn.Conv2d(2 * c_t, 2 * c_t, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * c_t),
            nn.ReLU(),
            nn.Conv2d(2 * c_t, c_t, 1, bias=False),
        )


class SemCKD(Distiller):
    """Every student stage i imitates every teacher stage j, with attention alpha[b, i, j] summing to one over j:

    1 / (B S) * sum over b, i, j of alpha[b, i, j] * mean over C, H, W of (proj_ij(f_s,i) - f_t,j)^2, the larger map
    pooled to the smaller first. Queries and keys come from the relation matrices F F^T of a batch, whose width is the
    batch size: only full batches count. A row of zeros embeds as zeros (the published code divides by zero there).
    """

    name = "semckd"

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        beta: float = 400.0
        soft: float = option(
            1.0, "temperature of the attention over teacher stages", "--soft", short="-s", check=positive
        )

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        if ctx.batch_size < 4:
            raise UserError(
                f"semckd embeds relations of a batch in a quarter of its size; {ctx.batch_size} samples "
                "are too few, raise --batch_size to 4 or more"
            )
        self.stages_s, self.stages_t = ctx.student.spec.stages, ctx.teacher.spec.stages
        for i, stage_s in enumerate(self.stages_s):
            self.add_module(f"query_{i}", Embed(ctx.batch_size))
            for j, stage_t in enumerate(self.stages_t):
                projection = Projection(ctx.student.shapes[stage_s][0], ctx.teacher.shapes[stage_t][0])
                self.add_module(f"regressor{i}{j}", projection)
        for j in range(len(self.stages_t)):
            self.add_module(f"key_{j}", Embed(ctx.batch_size))

    @classmethod
    def needs(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        stages_t = teacher.stages if teacher is not None else ()
        if not student.stages or not stages_t:
            raise UserError(
                f"semckd reads stage maps: {student.name} has {len(student.stages)}, "
                f"{teacher.name if teacher else 'no teacher'} has {len(stages_t)}"
            )
        return Needs(student.stages, stages_t, full_batches=True)

    def _attention(self, s: Features, t: Features) -> Tensor:
        """[B, S, M], summing to one over teacher stages."""
        # bfloat16 would leave two digits of the unnormalised inner products
        with torch.autocast(s["logits"].device.type, enabled=False):
            queries = torch.stack([self.get_submodule(f"query_{i}")(s[n]) for i, n in enumerate(self.stages_s)], 1)
            keys = torch.stack([self.get_submodule(f"key_{j}")(t[n]) for j, n in enumerate(self.stages_t)], 1)
            return (queries @ keys.mT / self.cfg.soft).softmax(2)

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        added = {"semckd.attention": self._attention(s, t)}
        for i, stage_s in enumerate(self.stages_s):
            for j, stage_t in enumerate(self.stages_t):
                f_s, _ = pool_to_smaller(s[stage_s], t[stage_t])
                added[f"semckd.projected.{i}.{j}"] = self.get_submodule(f"regressor{i}{j}")(f_s)
        return {**s, **added}, t

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        errors = []
        for i in range(len(self.stages_s)):
            for j, stage_t in enumerate(self.stages_t):
                projected, f_t = pool_to_smaller(s[f"semckd.projected.{i}.{j}"], t[stage_t])
                errors.append(squared_error(projected, f_t, "none").mean((1, 2, 3)))  # [B]
        attention = s["semckd.attention"]
        return {"semckd": (attention.flatten(1) * torch.stack(errors, 1)).sum(1).mean() / len(self.stages_s)}
