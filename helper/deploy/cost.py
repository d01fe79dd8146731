"""Cost of a deployed network: parameters and multiply-accumulates per sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from core.taps import TappedNet
from distiller_zoo._task import Composite, Deployed
from distiller_zoo.base import Deployment


def deployed_parameters(student: TappedNet, deployment: Deployment | None) -> tuple[int, int]:
    """(parameters of the bare student, parameters at test time).

    They differ if a method deploys layers or replaces the student's classifier, and by auxiliary heads.
    """
    bare = sum(p.numel() for p in student.model.parameters())
    kept = bare - sum(p.numel() for p in _branches(student.model))
    if deployment is None:
        return bare, kept
    replaced = 0 if deployment.head is None else sum(p.numel() for p in student.head.parameters())
    return bare, kept - replaced + sum(p.numel() for p in deployment.parameters())


def _branches(model: nn.Module) -> Iterable[nn.Parameter]:
    """Parameters of auxiliary heads, which are not needed at test time."""
    heads = getattr(model, "auxiliary_classifier", None)
    return () if heads is None else heads.parameters()


def deployed_count(model: nn.Module) -> int:
    """Parameters at test time of a network read from a checkpoint: a replaced classifier does not count."""
    if isinstance(model, Composite):
        return deployed_parameters(model.student, model.deployment)[1]
    return sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in _branches(model))


def replaced_head(predict: nn.Module) -> nn.Module | None:
    """The student's classifier, if the method uses another one at test time."""
    inner = predict.model if isinstance(predict, TappedNet) else predict
    if not isinstance(inner, (Deployed, Composite)):
        return None
    deployment = inner.deployment
    return None if deployment is None or deployment.head is None else inner.student.head


@contextmanager
def _passed_by(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the context, these modules return their input."""
    passed = list(modules)
    for module in passed:
        module.forward = lambda x: x
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
    norms = [m for m in predict.modules() if isinstance(m, nn.BatchNorm2d)]  # without MACs, and slow to count
    head = replaced_head(predict)
    with _passed_by([*norms, *([] if head is None else [head])]), FlopCounterMode(display=False) as counter:
        predict(inputs)
    predict.train(was_training)
    return counter.get_total_flops() // 2
