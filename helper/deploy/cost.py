"""What a deployed network costs: parameters and multiply-accumulates per sample."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from core.protocols import Context, Side
from core.taps import TappedNet
from distiller_zoo._task import Deployed, chain_of, needs_of
from distiller_zoo.base import Deployment, Distiller
from helper.networks.load import Composite


def deployed_parameters(student: TappedNet, deployment: Deployment | None) -> tuple[int, int]:
    """(parameters of the bare student, parameters at test time).

    They differ where a method deploys layers of its own, or replaces the student's classifier, and by auxiliary heads.
    """
    bare = sum(p.numel() for p in student.model.parameters())
    kept = bare - sum(p.numel() for p in _branches(student.model))
    if deployment is None:
        return bare, kept
    replaced = 0 if deployment.head is None else sum(p.numel() for p in student.head.parameters())
    return bare, kept - replaced + sum(p.numel() for p in deployment.parameters())


def _branches(model: nn.Module) -> Iterable[nn.Parameter]:
    """What auxiliary heads have; nothing of them is needed at test time."""
    heads = getattr(model, "auxiliary_classifier", None)
    return () if heads is None else heads.parameters()


def deployed_count(model: nn.Module) -> int:
    """Parameters at test time of a network read from a checkpoint: a classifier that was replaced does not count."""
    if isinstance(model, Composite):
        return deployed_parameters(model.student, model.deployment)[1]
    return sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in _branches(model))


def replaced_head(predict: nn.Module) -> nn.Module | None:
    """The student's classifier where the method has another one at test time."""
    inner = predict.model if isinstance(predict, TappedNet) else predict
    if not isinstance(inner, (Deployed, Composite)):
        return None
    deployment = inner.deployment
    return None if deployment is None or deployment.head is None else inner.student.head


@contextmanager
def _passed_by(modules: Iterable[nn.Module]) -> Iterator[None]:
    """These modules hand their input on."""
    passed = list(modules)
    for module in passed:
        module.forward = lambda x: x  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in passed:
            del module.forward


@torch.no_grad()
def macs(predict: nn.Module, shapes: Mapping[str, tuple[int, ...]], device: torch.device) -> int:
    """Multiply-accumulates of convolutions and matrix products for one sample, in eval mode. predict: takes
    Batch.inputs; may be a TappedNet or a Deployed student, whose replaced classifier does not count."""
    was_training = predict.training
    predict.eval()
    inputs = {k: torch.zeros(1, *shape, device=device) for k, shape in shapes.items()}
    norms = [m for m in predict.modules() if isinstance(m, nn.BatchNorm2d)]  # hold none, and take the counter's time
    head = replaced_head(predict)
    with _passed_by([*norms, *([] if head is None else [head])]), FlopCounterMode(display=False) as counter:
        predict(inputs)
    predict.train(was_training)
    return counter.get_total_flops() // 2


def training_macs(
    method: type[Distiller], cfg: Any, student: Side, teacher: Side | None, forward: Mapping[str, int], batch: int = 64
) -> list[int]:
    """Multiply-accumulates of training on one image, in each stage of a method: forward and backward of the student and
    of what the method puts between the networks, forward of the teacher. Losses and memory banks are not counted.

    forward: network -> multiply-accumulates of one image. A backward pass takes twice its forward; a student that a
    stage does not read is run forward.
    """
    kind_t = None if teacher is None else teacher.spec
    ctx = Context(100, torch.arange(1000) % 100, batch, student, teacher)
    built: Distiller | None = None
    out = []
    for stage in chain_of(method):
        if built is not None:
            built.requires_grad_(False)
        built = stage(cfg, dataclasses.replace(ctx, previous=built))
        trains = stage is method or needs_of(stage, cfg, student.spec, kind_t).student
        networks = forward[student.spec.name] * (3 if trains else 1) + (0 if kind_t is None else forward[kind_t.name])
        out.append(networks + _between(built, student, teacher, batch))
    return out


def _between(method: Distiller, student: Side, teacher: Side | None, batch: int) -> int:
    """Multiply-accumulates per image of a method's own layers, forward and backward."""

    def features(side: Side | None, grad: bool) -> dict[str, torch.Tensor]:
        shapes = {} if side is None else side.shapes
        return {k: torch.zeros(batch, *v, requires_grad=grad) for k, v in shapes.items()}

    method = copy.deepcopy(method)  # whose gradients are no numbers
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        s, t = method.connect(method.deploy(features(student, True)), features(teacher, False))
        ends = [v.sum() for v in (*s.values(), *t.values()) if v.requires_grad and not v.is_leaf]
        if ends:
            torch.stack(ends).sum().backward()
    return counter.get_total_flops() // 2 // batch
