"""Pairs of student and teacher maps, and errors for maps that do not fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core.protocols import Context, ModelSpec, Side, Tapped, UserError


def paired_stages(
    student: ModelSpec, teacher: ModelSpec | None, method: str, deepest: bool = False
) -> tuple[tuple[str, str], ...]:
    """Pairs of min(n_s, n_t) stages of both networks: the first ones, as published for most methods (zip over
    feat[1:-1]), or the deepest ones."""
    stages_t = teacher.stages if teacher is not None else ()
    num = min(len(student.stages), len(stages_t))
    if not num:
        raise UserError(
            f"{method} pairs stage maps, but there are none to pair: {student.name} has {len(student.stages)}, "
            f"{teacher.name if teacher else 'no teacher'} has {len(stages_t)}"
        )
    part = slice(-num, None) if deepest else slice(num)
    return tuple(zip(student.stages[part], stages_t[part], strict=True))


def unequal_stages(
    student: ModelSpec, teacher: ModelSpec | None, method: str, deepest: bool = False
) -> tuple[str, ...]:
    """A note on the pairs, if one network has more stages than the other."""
    pairs = paired_stages(student, teacher, method, deepest)
    if teacher is None or len(student.stages) == len(teacher.stages):
        return ()
    return (
        f"{method} pairs {', '.join(f'{a} with {b}' for a, b in pairs)} of {student.name} and {teacher.name}; "
        f"{student.name} has {len(student.stages)} stages, {teacher.name} {len(teacher.stages)}",
    )


def last_stage(spec: ModelSpec | None, method: str) -> str:
    """Name of the deepest stage map (the published feat[-2]); UserError if the network has none."""
    if spec is None or not spec.stages:
        raise UserError(f"{method} reads the last stage map, but {spec.name if spec else 'no teacher'} has none")
    return spec.stages[-1]


def classified_map(spec: ModelSpec | None, method: str) -> str:
    """Name of the map whose mean the classifier reads: the last stage's, unless the spec names another."""
    return (spec and spec.last_map) or last_stage(spec, method)


def places_tap(spec: ModelSpec | None, method: str) -> str:
    """Name of what has a vector for every place of an image: a transformer's patch tokens, else classified_map()."""
    return "patches" if spec is not None and "patches" in spec.taps else classified_map(spec, method)


def as_map(x: Tensor) -> Tensor:
    """Patch tokens of a square grid [B, P, D] as a map [B, D, g, g]; a map as it is."""
    return x if x.ndim == 4 else x.mT.unflatten(2, (math.isqrt(x.shape[1]), -1))


def preact(spec: ModelSpec | None, stages: Sequence[str], method: str) -> tuple[str, ...]:
    """Taps of the inputs of the ReLU at the end of each stage; UserError if the network has none."""
    names = tuple(f"{stage}_preact" for stage in stages)
    if spec is None or (missing := [n for n in names if n not in spec.taps]):
        has = (
            "no teacher"
            if spec is None
            else f"{spec.name} has no tap {', '.join(missing)}; it has {', '.join(spec.taps)}"
        )
        raise UserError(f"{method} reads stage maps before their ReLU, but {has}")
    return names


def require_equal_channels(student: Side, teacher: Side, pairs: Sequence[tuple[str, str]], method: str) -> None:
    """UserError for the first pair of maps that differ in width."""
    for a, b in pairs:
        shape_s, shape_t = student.shapes[a], teacher.shapes[b]
        if shape_s[0] != shape_t[0]:
            raise UserError(
                f"{method} needs maps of equal width: {a} of {student.spec.name} is {shown(shape_s)}, "
                f"{b} of {teacher.spec.name} is {shown(shape_t)}; choose networks of one family and width"
            )


def refuse_single_samples(ctx: Context, method: str) -> None:
    """UserError if a batch of one would reach a batch norm of vectors, which needs several samples."""
    if (ctx.batch_size if ctx.smallest_batch is None else ctx.smallest_batch) < 2:
        raise UserError(
            f"{method} normalises pooled vectors over the batch, but {len(ctx.train_labels)} samples in batches of "
            f"{ctx.batch_size} leave a batch of one: choose another --batch_size or --accumulate"
        )


def shown(shape: Sequence[int]) -> str:
    """(64, 8, 8) -> 64x8x8."""
    return "x".join(map(str, shape))


def resizing_conv(shape_s: Sequence[int], shape_t: Sequence[int]) -> nn.Module | None:
    """The convolution from a student's map [C, H, W] to the shape of a teacher's, with the published choice of kernel
    (FitNet, AB); None if the teacher's map is larger, but not twice as large."""
    (c_s, h_s, w_s), (c_t, h_t, w_t) = shape_s, shape_t
    if (h_s, w_s) == (2 * h_t, 2 * w_t):
        return nn.Conv2d(c_s, c_t, kernel_size=3, stride=2, padding=1)
    if (2 * h_s, 2 * w_s) == (h_t, w_t):
        return nn.ConvTranspose2d(c_s, c_t, kernel_size=4, stride=2, padding=1)
    if h_s >= h_t and w_s >= w_t:
        return nn.Conv2d(c_s, c_t, kernel_size=(1 + h_s - h_t, 1 + w_s - w_t))
    return None


def pooled_tap(spec: ModelSpec | None, method: str) -> str:
    """Name of the pooled feature that the classifier reads; UserError if the network has none."""
    if spec is None or "pooled" not in spec.taps:
        raise UserError(f"{method} reads the pooled feature, but {spec.name if spec else 'no teacher'} has none")
    return "pooled"


def pooled_width(side: Side, method: str, tap: str = "pooled") -> int:
    """Length of the pooled vector; UserError where the classifier reads a map."""
    if len(shape := side.shapes[tap]) != 1:
        raise UserError(
            f"{method} compares pooled vectors, but the classifier of {side.spec.name} reads a map, "
            f"{shown(shape)}: choose another network, or a method of maps such as at"
        )
    return shape[0]


def head_width(side: Side) -> int:
    """Number of values that the classifier reads per sample; UserError if it is not linear."""
    for module in side.head.modules():
        if isinstance(module, nn.Linear):
            return module.in_features
    raise UserError(f"the classifier of {side.spec.name} ({side.spec.head}) has no linear layer to reuse")


def require_pooled_head(side: Side, method: str) -> None:
    """UserError if the classifier reads a transformer's class token, or anything but the mean over the last map."""
    if "class_token" in side.spec.taps:
        reads = "reads a class token"
    elif not side.pools_last and head_width(side) == side.shapes[classified_map(side.spec, method)][0]:
        reads = "reads another function of it than its mean"
    else:
        return
    raise UserError(
        f"{method} applies the classifier of {side.spec.name} to its last map, but that classifier {reads}; choose a "
        "network that only pools between the two, e.g. a resnet, a wrn or a vgg"
    )


def unreached(student: Tapped) -> list[nn.Parameter]:
    """Parameters on which none of the student's taps depends, found by a backward pass in eval mode."""
    was_trainable = [p.requires_grad for p in student.model.parameters()]
    was_training = student.model.training
    student.model.requires_grad_(True).eval()  # batch-norm statistics do not change
    params = list(student.model.parameters())
    zeros = torch.zeros(1, *student.spec.input_shape, device=params[0].device)
    with torch.enable_grad():
        features = student({student.spec.input: zeros})
        read = [features[tap].sum() for tap in sorted(student.want)]
        gradients = torch.autograd.grad(read, params, allow_unused=True) if read else [None] * len(params)
    student.model.train(was_training)
    for p, trainable in zip(params, was_trainable, strict=True):
        p.requires_grad_(trainable)
    return [p for p, gradient in zip(params, gradients, strict=True) if gradient is None]


def linear_head(side: Side, stage: str, method: str) -> nn.Linear:
    """The classifier, if it can be applied to every position of the map that it pools; UserError otherwise."""
    require_pooled_head(side, method)
    channels = side.shapes[stage][0]
    if not isinstance(side.head, nn.Linear) or side.head.in_features != channels:
        reads = f"reads {side.head.in_features} values" if isinstance(side.head, nn.Linear) else "is not a linear layer"
        raise UserError(
            f"{method} applies the classifier of {side.spec.name} to its last map of {channels} channels, but the "
            f"classifier {reads}; choose a network that only pools between the two, e.g. a resnet, a wrn or a vgg"
        )
    return side.head


class Dropout(nn.Module):
    """Dropout that draws from the generator of a method, whose state is saved with the run."""

    def __init__(self, share: float, rng: torch.Generator):
        super().__init__()
        self.share, self.rng = share, rng

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.share):
            return x
        kept = torch.rand(x.shape, generator=self.rng, device=x.device) >= self.share
        return x * kept / (1 - self.share)
