"""Shared by the methods on auxiliary heads (HSAKD, Yang et al., IJCAI 2021; DPCD): heads, views, joint labels.

Shape letters as in core.protocols; L heads. A head returns [B*V, K] or, with one value per class and rotation, [B*V,
4K]. This file defines no method.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.option import option
from core.protocols import Batch, Context, Features, ModelSpec, Needs, Progress, Side, Tapped, UserError
from distiller_zoo._math import kl_rows, over_views
from distiller_zoo._stages import shown
from distiller_zoo.base import Distiller

TURNS = 4


def auxiliary_heads(spec: ModelSpec | None, method: str) -> tuple[str, ...]:
    """Taps of a network's auxiliary heads, the shallowest first; UserError if it has none."""
    if spec is None or not spec.branches:
        has = "no teacher" if spec is None else f"{spec.name} has none"
        raise UserError(
            f"{method} reads auxiliary heads, but {has}: choose a network whose name ends in _aux (see --list models)"
        )
    return spec.branches


def require_outputs(side: Side, heads: Sequence[str], per_class: int, num_classes: int, method: str) -> None:
    """UserError unless every head has this many outputs for each class."""
    for head in heads:
        (outputs,) = side.shapes[head]
        if outputs != per_class * num_classes:
            base = side.spec.name.removesuffix("_dpcd")
            other = base if per_class == TURNS else f"{base}_dpcd"
            raise UserError(
                f"{method} needs heads with {per_class * num_classes} outputs for {num_classes} classes, but {head} of "
                f"{side.spec.name} has {outputs}: use {other}"
            )


def stacked(features: Features, heads: Sequence[str]) -> Tensor:
    """[L * B*V, outputs]: the logits of all heads, for one call of the loss."""
    return torch.cat([features[head] for head in heads])


class WithHeads(Distiller):
    """A student with auxiliary heads. per_class: outputs of a head for each class."""

    per_class: ClassVar[int] = 1

    @dataclass(frozen=True)
    class Config(Distiller.Config):
        beta: float = 1.0
        report_heads: bool = option(False, "also evaluate every auxiliary head of the student", "--report_heads")

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        self.heads = auxiliary_heads(ctx.student.spec, self.name)
        require_outputs(ctx.student, self.heads, self.per_class, ctx.num_classes, self.name)

    @classmethod
    def needs(cls, cfg: Config, student: ModelSpec, teacher: ModelSpec | None) -> Needs:
        return Needs(student=auxiliary_heads(student, cls.name))

    def reported(self) -> tuple[str, ...]:
        return self.heads if self.cfg.report_heads else ()

    def readouts(self, features: Features) -> dict[str, Tensor]:
        """The student's logits and, with --report_heads, those of its heads: the sum over a class's outputs, [B, K]."""
        out = super().readouts(features)
        return out | {head: features[head].unflatten(1, (-1, self.per_class)).sum(2) for head in self.reported()}

    def entropy_of_heads(self, features: Features, batch: Batch) -> Tensor:
        """Sum over heads of the cross-entropy, mean over B*V."""
        labels, num = batch.target if batch.soft_target is None else batch.soft_target, len(self.heads)
        target = labels.repeat_interleave(batch.views, 0).repeat(num, *[1] * (labels.ndim - 1))
        return num * self.cross_entropy(stacked(features, self.heads), target)


class HeadTeacher(WithHeads):
    """Trains a network and its heads on labels; with a frozen backbone only the heads."""

    teacher_mode = "absent"

    @dataclass(frozen=True)
    class Config(WithHeads.Config):
        div: float = 0.0
        freeze_backbone: bool = option(
            False,
            "train only the heads, on the frozen backbone of --pretrained_backbone",
            "--freeze_backbone",
            short="--freezed",
        )

    def unused(self, student: Tapped) -> Sequence[nn.Parameter]:
        if not self.cfg.freeze_backbone:
            return super().unused(student)
        parts = [part for head in self.heads for part in student.model.parts(head)]  # type: ignore[operator]
        trained = {id(p) for part in parts for p in part.parameters()}
        return [p for p in student.model.parameters() if id(p) not in trained]

    @property
    def keeps_network(self) -> bool:
        return self.cfg.freeze_backbone

    def weights(self, progress: Progress) -> dict[str, float]:
        """A frozen backbone's cross-entropy is constant and left out; published code adds it to the reported loss."""
        weights = super().weights(progress)
        return weights | {"cls": 0.0} if self.cfg.freeze_backbone else weights


# the last rotated batch, so that students trained together share views and the teacher's forward pass
_last: list[tuple[weakref.ref[Batch], str, Batch]] = []


def rotations(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, 4, H, W, C], rotated counter-clockwise by 0, 90, 180, 270 degrees; channels last."""
    b, c, h, w = x.shape
    if h != w:
        raise UserError(f"images of {h}x{w} cannot be rotated by 90 degrees within one batch: use square images")
    pixels = x.permute(0, 2, 3, 1)
    return torch.stack([pixels.rot90(k, (1, 2)) for k in range(TURNS)], 1)


class Rotated(WithHeads):
    """Every image is used upright and rotated; heads predict class and rotation: label 4 * y + k of [K * 4].

    With fewer than four rotations per step, the upright view is kept and the others are drawn for each image. The
    weights of the views keep every term's expectation: a quarter for the upright view, the rest for the drawn ones.
    """

    per_class = TURNS
    view_weights: Tensor

    @dataclass(frozen=True)
    class Config(WithHeads.Config):
        kd_T: float = 3.0  # noqa: N815 (the published flag)
        rotations: int = option(
            TURNS,
            "views of each image per step: the upright one and other rotations (published: 4)",
            "--rotations",
            (1, 2, 3, 4),
        )

    def __init__(self, cfg: Config, ctx: Context):
        super().__init__(cfg, ctx)
        self.rng, self.image = ctx.rng, ctx.student.spec.input
        _, height, width = ctx.student.input_shape or (0, 1, 1)
        if height != width:
            raise UserError(
                f"{self.name} rotates images by 90 degrees, but {shown(ctx.student.input_shape)} is not "
                "square: use square images (--image_size)"
            )
        others = cfg.rotations - 1
        weights = [1.0] if not others else [1 / TURNS, *others * [(1 - 1 / TURNS) / others]]
        # not in the state dict: it follows from the settings
        self.register_buffer("view_weights", torch.tensor(weights), persistent=False)

    def prepare(self, batch: Batch) -> Batch:
        if batch.views != 1:
            raise UserError(f"{self.name} rotates single views, but the batch holds {batch.views} per sample")
        if batch.teacher_inputs is not None:
            raise UserError(f"{self.name} also rotates the teacher's images: in a combination, put it first")
        if self.cfg.rotations == TURNS and _last and _last[0][0]() is batch and _last[0][1] == self.image:
            return _last[0][2]
        flat, b = rotations(batch.inputs[self.image]).flatten(0, 1), len(batch)
        turns = torch.arange(TURNS, device=batch.target.device).expand(b, TURNS)
        if self.cfg.rotations < TURNS:
            drawn = torch.rand(b, TURNS - 1, generator=self.rng, device=turns.device).argsort(1)
            turns = torch.cat([turns[:, :1], 1 + drawn[:, : self.cfg.rotations - 1]], 1)
            places = turns + TURNS * torch.arange(b, device=turns.device)[:, None]
            flat = flat.index_select(0, places.flatten())
        num = self.cfg.rotations
        inputs = {k: x.repeat_interleave(num, 0) for k, x in batch.inputs.items() if k != self.image}
        inputs[self.image] = flat.permute(0, 3, 1, 2)
        rotated = dataclasses.replace(batch.with_inputs(inputs, views=num), turns=turns.flatten())
        if num == TURNS:
            _last[:] = [(weakref.ref(batch), self.image, rotated)]
        return rotated

    def weights_of_views(self) -> Tensor | None:
        return self.view_weights

    def joint_entropy(self, features: Features, heads: Sequence[str], batch: Batch) -> Tensor:
        """Sum over heads of the cross-entropy of (class, rotation)."""
        weights = None if self.class_weights is None else self.class_weights.repeat_interleave(TURNS)
        rows = F.cross_entropy(stacked(features, heads), joint_labels(batch, len(heads)), weights, reduction="none")
        return len(heads) * over_views(rows, self.view_weights)

    def head_kl(self, s: Features, t: Features, pairs: Mapping[str, str]) -> Tensor:
        """Sum over pairs (head of s -> head of t) of T^2 KL, all in one call."""
        z_s, z_t = stacked(s, list(pairs)), stacked(t, list(pairs.values()))
        rows = kl_rows(self.comparable(z_s), self.comparable(z_t), self.cfg.kd_T)
        return len(pairs) * over_views(rows, self.view_weights)


def joint_labels(batch: Batch, num_heads: int = 1) -> Tensor:
    """4 * y + k of every row, once for each head: [L * B*V], or with soft labels [L * B*V, 4K]."""
    assert batch.turns is not None, "the batch was not rotated"
    if batch.soft_target is None:
        return (TURNS * batch.target.repeat_interleave(batch.views) + batch.turns).repeat(num_heads)
    soft = batch.soft_target.repeat_interleave(batch.views, 0)[:, :, None]  # [B*V, K, 1]
    joint = soft * F.one_hot(batch.turns, TURNS)[:, None, :]
    return joint.flatten(1).to(soft.dtype).repeat(num_heads, 1)
