"""SEED: Self-supervised Distillation For Visual Representation (Fang et al., ICLR 2021): KL over a queue."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.option import not_negative, option, positive
from core.protocols import Batch, Context, Features, ModelSpec, Needs, Progress, Terms
from distiller_zoo._math import kl
from distiller_zoo._stages import classified_map, pooled_tap, pooled_width
from distiller_zoo.base import Distiller

SIZES = ((20_000, 8192), (10_000, 4096), (4000, 2048), (2000, 1024), (1000, 512), (500, 256), (250, 128), (100, 64))
SMALLEST = ((50, 32), (0, 16))  # more training samples than the first number -> rows of the queue


def queue_size(samples: int) -> int:
    """Rows of the queue for a number of training samples."""
    return next(rows for more_than, rows in (*SIZES, *SMALLEST) if samples > more_than)


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)) over the last axis, mean over all others; no factor T^2."""
    return kl(student.flatten(0, -2) / temperature, teacher.flatten(0, -2) / temperature, 1.0)


class Queue(Distiller):
    """KL of similarities to a queue of teacher vectors, plus KL of similarities among the places of each image.

    Needs no labels. g: pooled vectors [B, D], Q: the queue [n, D], l: maps [B, D, H, W]; all vectors have unit length.
    L = KL(softmax(g_t Q^T / T) || softmax(g_s Q^T / T)) + local * KL(softmax(A_t / T) || softmax(A_s / T)), with
    A = l^T l of one image; mean over B, and over places. The student's vector and map pass linear layers to the
    teacher's width; its map is then resized to the teacher's. The batch's own teacher vectors come first in the
    queue, which starts with zeros; every process has one. The first term follows SEED; how the queue is filled, the
    second term and all settings are Lightly-Train's.
    With -c 0 -d 0, the default, no classifier is trained: try the features with eval_rep.py.
    """

    name = "queue"

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        cls: float = 0.0
        div: float = 0.0
        beta: float = 1.0
        size: int = option(
            0,
            "rows of the queue (default 0: chosen by the number of training images, 8192 above 20000)",
            "--queue_size",
            check=not_negative,
        )
        temperature: float = option(0.07, "temperature of the similarities", "--queue_T", check=positive)
        local: float = option(1.0, "weight of the term on maps; 0 needs no maps", "--queue_local", check=not_negative)

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        d_s, d_t = (pooled_width(side, self.name) for side in (ctx.student, ctx.teacher))
        self.globals = nn.Linear(d_s, d_t)
        heads = [self.globals]
        if cfg.local:
            self.last_s, self.last_t = (classified_map(side.spec, self.name) for side in (ctx.student, ctx.teacher))
            self.locals = nn.Linear(ctx.student.shapes[self.last_s][0], ctx.teacher.shapes[self.last_t][0])
            heads.append(self.locals)
        for head in heads:
            nn.init.trunc_normal_(head.weight, std=0.02)
        self.register_buffer("rows_kept", torch.zeros(cfg.size or queue_size(len(ctx.train_labels)), d_t))

    @classmethod
    def needs(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        names = [(pooled_tap(spec, cls.name),) for spec in (student, teacher)]
        if cfg.local:
            names = [(*taps, classified_map(s, cls.name)) for taps, s in zip(names, (student, teacher), strict=True)]
        return Needs(*names)

    def connect(self, s: Features, t: Features) -> tuple[Features, Features]:
        s = {**s, "queue.vector": self.globals(s["pooled"])}
        t = {**t, "queue.vector": F.normalize(t["pooled"])}
        if self.cfg.local:
            projected = self.locals(s[self.last_s].movedim(1, -1)).movedim(-1, 1)
            size = t[self.last_t].shape[2:]
            s["queue.map"] = F.interpolate(projected, size, mode="bilinear", align_corners=False)
        return s, t

    def _updated(self, t: Features) -> Tensor:
        """The queue [n, D] with the batch in front; the oldest rows are dropped."""
        return torch.cat([t["queue.vector"], self.rows_kept])[: len(self.rows_kept)]

    def terms(self, s: Features, t: Features, batch: Batch, progress: Progress) -> Terms:
        queue, temperature = self._updated(t), self.cfg.temperature
        student = F.normalize(s["queue.vector"])
        loss = divergence(student @ queue.T, t["queue.vector"] @ queue.T, temperature)
        if self.cfg.local:
            l_s, l_t = (F.normalize(f.flatten(2), dim=1) for f in (s["queue.map"], t[self.last_t]))  # [B, D, HW]
            loss = loss + self.cfg.local * divergence(l_s.mT @ l_s, l_t.mT @ l_t, temperature)
        return {"queue": loss}

    def after_step(self, s: Features, t: Features, batch: Batch) -> None:
        self.rows_kept.copy_(self._updated(t))
