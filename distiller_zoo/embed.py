"""Contrastive Learning Rivals Masked Image Modeling via Feature Distillation (Wei et al., arXiv 2022).

D(g(f_s), f_t) of pooled vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.option import not_negative, option
from core.protocols import Batch, Context, Features, ModelSpec, Needs, Progress, Terms
from distiller_zoo._stages import pooled_tap
from distiller_zoo.base import Distiller


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(a, b).mean()


LOSSES = {"cosine": cosine, "smooth_l1": F.smooth_l1_loss, "mse": F.mse_loss}


class Embed(Distiller):
    """The student's pooled vector, through a projector g, matches the teacher's embedding. f: pooled vectors [B, D].

    cosine: 1 - cos, mean over B. smooth_l1 (threshold 1) and mse: mean over all elements; their size follows that of
    the embedding, unless it is whitened: every teacher vector with mean 0 and variance 1, a layer norm without
    parameters.
    Several teachers (--path_t A B): a projector for each, and the mean of their losses.
    The paper compares whitened maps of equal width with smooth L1; here pooled vectors of any widths are compared.
    """

    name = "embed"
    several_teachers = True

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        beta: float = 1.0
        loss: str = option("cosine", "how the vectors are compared", "--embed_loss", choices=tuple(LOSSES))
        projector: str = option(
            "linear",
            "one linear layer, or two with a GELU between them",
            "--embed_projector",
            choices=("linear", "mlp"),
        )
        hidden: int = option(
            0,
            "hidden width of the two-layer projector (default 0: twice the teacher's width)",
            "--embed_hidden",
            check=not_negative,
        )
        whiten: bool = option(False, "whiten the teacher's vectors", "--embed_whiten")
        authors: ClassVar[Mapping[str, float]] = {"div": 0.0}

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        (d_s,), shapes = ctx.student.shapes["pooled"], ctx.teacher.shapes
        self.teachers = [name for name in shapes if name.partition("@")[0] == "pooled"]
        self.proj, *more = (self._projector(d_s, *shapes[name]) for name in self.teachers)
        self.more = nn.ModuleList(more)

    def _projector(self, d_s: int, d_t: int) -> nn.Module:
        hidden = self.cfg.hidden or 2 * d_t
        layers = [nn.Linear(d_s, hidden), nn.GELU(), nn.Linear(hidden, d_t)]
        return nn.Linear(d_s, d_t) if self.cfg.projector == "linear" else nn.Sequential(*layers)

    @classmethod
    def needs(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        return Needs((pooled_tap(student, cls.name),), (pooled_tap(teacher, cls.name),))

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        projectors = zip(self.teachers, (self.proj, *self.more), strict=True)
        return {**s, **{f"embed.{name}": proj(s["pooled"]) for name, proj in projectors}}, t

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        losses = []
        for name in self.teachers:
            target = F.layer_norm(t[name], t[name].shape[1:]) if self.cfg.whiten else t[name]
            losses.append(LOSSES[self.cfg.loss](s[f"embed.{name}"], target))
        return {"embed": losses[0] if len(losses) == 1 else torch.stack(losses).mean()}
