"""Instance Relationship Graph (Liu et al., CVPR 2019, eq. 6 to 9): mean (D_s - D_t)^2 + mean (f_s - f_t)^2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.option import option
from core.protocols import Batch, Context, Features, ModelSpec, Needs, Progress, Terms, UserError
from distiller_zoo._math import rows
from distiller_zoo._stages import pooled_tap
from distiller_zoo.base import Distiller


def edges(f: Tensor) -> Tensor:
    """[B, ...] -> [B, B] squared distances of the samples, divided by the largest; diagonal 0."""
    flat = rows(f)
    square = flat.pow(2).sum(1)
    others = 1 - torch.eye(len(flat), dtype=flat.dtype, device=flat.device)
    d = (square[:, None] + square - 2 * flat @ flat.T).clamp_min(1e-12) * others
    return d / (d.max() + 1e-12)


def layer_pairs(layers: Sequence[int], spec: ModelSpec | None, flag: str) -> tuple[tuple[str, str], ...]:
    """(0, 1, 2, 3) -> the maps 0 and 1, 2 and 3 of `feats`, by name."""
    maps = spec.feats[:-1] if spec is not None else ()
    if len(layers) % 2 or not all(0 <= i < len(maps) for i in layers):
        known = ", ".join(f"{i} ({name})" for i, name in enumerate(maps))
        raise UserError(f"{flag} {' '.join(map(str, layers))} must list pairs of maps; there are: {known}")
    return tuple((maps[a], maps[b]) for a, b in zip(layers[::2], layers[1::2], strict=True))


class IRG(Distiller):
    """Edges and vertices of the graph of pooled features; vertices only where both networks are equally wide.

    How maps change between two layers, if such layers are named: (mean (D_1 - D_2)^2 of the student minus that of the
    teacher)^2, and the same of the maps themselves where their shapes agree. As published with SemCKD, weights 1 and 1.
    """

    name = "irg"
    relational = True

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        beta: float = 0.005
        transform_layer_s: tuple[int, ...] = option(
            (), "student layers to compare in pairs, 0 is the stem (default: none)", "--transform_layer_s"
        )
        transform_layer_t: tuple[int, ...] = option(
            (), "teacher layers to compare in pairs, 0 is the stem (default: none)", "--transform_layer_t"
        )
        no_edge_transform: bool = option(
            False,
            "leave the edges out of the comparison of --transform_layer_s and --transform_layer_t",
            "--no_edge_transform",
        )

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        self.equal_width = ctx.student.shapes["pooled"] == ctx.teacher.shapes["pooled"]
        pairs_s, pairs_t = self._pairs(cfg, ctx.student.spec, ctx.teacher.spec)
        self.edge_pairs = () if cfg.no_edge_transform else tuple(zip(pairs_s, pairs_t, strict=True))
        self.vertex_pairs = tuple(
            (a, b)
            for a, b in zip(pairs_s, pairs_t, strict=True)
            if ctx.student.shapes[a[0]] == ctx.student.shapes[a[1]]
            and ctx.teacher.shapes[b[0]] == ctx.teacher.shapes[b[1]]
        )

    @staticmethod
    def _pairs(cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> tuple[tuple[tuple[str, str], ...], ...]:
        if len(cfg.transform_layer_s) != len(cfg.transform_layer_t):
            raise UserError(
                f"--transform_layer_s names {len(cfg.transform_layer_s)} layers, --transform_layer_t "
                f"{len(cfg.transform_layer_t)}: give the same number of both"
            )
        return (
            layer_pairs(cfg.transform_layer_s, student, "--transform_layer_s"),
            layer_pairs(cfg.transform_layer_t, teacher, "--transform_layer_t"),
        )

    @classmethod
    def needs(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        pairs_s, pairs_t = cls._pairs(cfg, student, teacher)
        return Needs(
            (*dict.fromkeys(x for pair in pairs_s for x in pair), pooled_tap(student, cls.name)),
            (*dict.fromkeys(x for pair in pairs_t for x in pair), pooled_tap(teacher, cls.name)),
        )

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        loss = F.mse_loss(edges(s["pooled"]), edges(t["pooled"]))
        if self.equal_width:
            loss = loss + F.mse_loss(s["pooled"], t["pooled"])
        for (a, b), (c, d) in self.edge_pairs:
            change_s, change_t = F.mse_loss(edges(s[a]), edges(s[b])), F.mse_loss(edges(t[c]), edges(t[d]))
            loss = loss + (change_s - change_t).pow(2)
        for (a, b), (c, d) in self.vertex_pairs:
            loss = loss + (F.mse_loss(s[a], s[b]) - F.mse_loss(t[c], t[d])).pow(2)
        return {"irg": loss}
