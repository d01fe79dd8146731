"""Contrastive Learning Rivals Masked Image Modeling via Feature Distillation (Wei et al., arXiv 2022).

D(g(f_s), f_t) of pooled vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.option import not_negative, option
from core.protocols import Batch, Context, Features, ModelSpec, Needs, Progress, Terms
from distiller_zoo._stages import as_map, places_tap, pooled_tap, pooled_width
from distiller_zoo.base import Distiller, WithoutKL


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(a, b).mean()


def _width(shape: Sequence[int]) -> int:
    """Width D of patch tokens (P, D) or of a map (D, h, w)."""
    return shape[-1] if len(shape) == 2 else shape[0]


LOSSES = {"cosine": cosine, "smooth_l1": F.smooth_l1_loss, "mse": F.mse_loss}


class Embed(Distiller):
    """The student's pooled vector, through a projector g, matches the teacher's embedding. f: pooled vectors [B, D].

    cosine: 1 - cos, mean over B. smooth_l1 (threshold 1) and mse: mean over all elements; their size follows that of
    the embedding, unless it is whitened: every teacher vector with mean 0 and variance 1, a layer norm without
    parameters.
    --embed_local adds the same loss of the vectors at every place: of patch tokens, or of the last map. Those of the
    student pass a linear layer and are resized to the teacher's grid.
    Several teachers (--path_t A B): projectors for each, and the mean of their losses.
    The paper compares whitened maps of equal width with smooth L1; here pooled vectors of any widths are compared.
    """

    name = "embed"
    several_teachers = True

    @dataclass(frozen=True)
    class Config(WithoutKL):
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
        local: float = option(
            0.0, "weight of the loss on patch tokens, or the last map", "--embed_local", check=not_negative
        )

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        d_s, shapes = pooled_width(ctx.student, self.name), ctx.teacher.shapes
        self.teachers = [name for name in shapes if name.partition("@")[0] == "pooled"]
        widths = [pooled_width(ctx.teacher, self.name, name) for name in self.teachers]
        self.proj, *more = (self._projector(d_s, width) for width in widths)
        self.more = nn.ModuleList(more)
        if cfg.local:
            self.places_s, self.places_t = (places_tap(side.spec, self.name) for side in (ctx.student, ctx.teacher))
            at_places = [_width(shapes[name.replace("pooled", self.places_t)]) for name in self.teachers]
            self.locals = nn.ModuleList(nn.Linear(_width(ctx.student.shapes[self.places_s]), d) for d in at_places)

    def _projector(self, d_s: int, d_t: int) -> nn.Module:
        hidden = self.cfg.hidden or 2 * d_t
        layers = [nn.Linear(d_s, hidden), nn.GELU(), nn.Linear(hidden, d_t)]
        return nn.Linear(d_s, d_t) if self.cfg.projector == "linear" else nn.Sequential(*layers)

    def _loss(self, a: Tensor, b: Tensor) -> Tensor:
        """The loss of the student's rows [R, D] and the teacher's, a scalar."""
        return LOSSES[self.cfg.loss](a, F.layer_norm(b, b.shape[1:]) if self.cfg.whiten else b)

    @classmethod
    def needs(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        names = [(pooled_tap(spec, cls.name),) for spec in (student, teacher)]
        if cfg.local:
            names = [(*taps, places_tap(s, cls.name)) for taps, s in zip(names, (student, teacher), strict=True)]
        return Needs(*names)

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        projectors = zip(self.teachers, (self.proj, *self.more), strict=True)
        made = {f"embed.{name}": proj(s["pooled"]) for name, proj in projectors}
        if self.cfg.local:
            places = as_map(s[self.places_s]).movedim(1, -1)  # [B, h, w, D]
            for name, proj in zip(self.teachers, self.locals, strict=True):
                made[f"embed.places.{name}"] = proj(places).movedim(-1, 1)
        return {**s, **made}, t

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        losses = []
        for name in self.teachers:
            loss = self._loss(s[f"embed.{name}"], t[name])
            if self.cfg.local:
                map_t = as_map(t[name.replace("pooled", self.places_t)])
                map_s = F.interpolate(
                    s[f"embed.places.{name}"], map_t.shape[2:], mode="bilinear", align_corners=False, antialias=True
                )
                rows = (m.movedim(1, -1).flatten(0, 2) for m in (map_s, map_t))  # [B * h * w, D]
                loss = loss + self.cfg.local * self._loss(*rows)
            losses.append(loss)
        return {"embed": losses[0] if len(losses) == 1 else torch.stack(losses).mean()}
