"""Distillers built from shapes alone: no network runs, so that a test can hand a method any features."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core.protocols import Batch, Context, Features, ModelSpec, Progress, Side, Tap
from distiller_zoo import method_dict
from distiller_zoo._task import chain_of
from distiller_zoo.base import Distiller


def spec(name: str, num_stages: int) -> ModelSpec:
    stages = [f"stage{i + 1}" for i in range(num_stages)]
    feats = ("stem", *stages, "pooled")
    preact = [f"{stage}_preact" for stage in stages]
    return ModelSpec(name, nn.Module, {f: Tap(f) for f in (*feats, *preact)}, feats, head="fc")


def side(
    name: str, stages: Sequence[Sequence[int]], pooled: int, num_classes: int, head: nn.Module | None = None
) -> Side:
    """stages: [C, H, W] of every stage. Taps of each stage and its pre-activation, and "pooled"; the stem has the shape
    of the first stage."""
    names = spec(name, len(stages))
    shapes = dict(zip(names.stages, map(tuple, stages), strict=True))
    shapes |= {f"{stage}_preact": shape for stage, shape in shapes.items()}
    if stages:
        shapes["stem"] = tuple(stages[0])
    shapes.update(pooled=(pooled,), logits=(num_classes,))
    return Side(names, head or nn.Linear(pooled, num_classes), shapes)


def build(
    method: str,
    student: Side,
    teacher: Side | None,
    labels: Tensor | None = None,
    batch_size: int = 8,
    seed: int = 0,
    stage: int = -1,
    **options: object,
) -> Distiller:
    """One stage of a method, the last by default; those before it are built and left untrained."""
    kind = method_dict[method]
    labels = torch.arange(50) % 5 if labels is None else labels
    num_classes = student.shapes["logits"][0]
    torch.manual_seed(seed)
    ctx = Context(
        num_classes,
        labels,
        batch_size,
        student,
        teacher,
        init_rng=torch.Generator().manual_seed(seed),
        rng=torch.Generator().manual_seed(seed + 1),
    )
    built: list[Distiller] = []
    for part in chain_of(kind):
        ctx = dataclasses.replace(ctx, previous=built[-1].requires_grad_(False) if built else None)
        built.append(part(kind.Config(**options), ctx))
    return built[0].requires_grad_(True) if stage == 0 else built[stage]


def batch_of(target: Tensor, index: Tensor | None = None, views: int = 1) -> Batch:
    return Batch({}, target, torch.arange(len(target)) if index is None else index, views)


def run(
    method: Distiller,
    s: Features,
    t: Features,
    batch: Batch,
    progress: Progress | None = None,
) -> tuple[dict[str, Tensor], Features, Features]:
    """What a training step makes of given features, short of the backward pass: terms, and the features they read."""
    s, t = method.connect(method.deploy(s), t)
    progress = progress or Progress()
    return {**method.common_terms(s, t, batch, method.weights(progress)), **method.terms(s, t, batch, progress)}, s, t
