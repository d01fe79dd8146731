"""One training step of a method whose teacher has no classifier."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from helper.networks.load import without_classifier
from tests.support.cases import registry_cases
from tests.support.contract import PROGRESS, make_step
from tests.support.toys import B


def step_without_logits(name: str) -> Tensor:
    """The loss with -d 0; fails where the method reads what a headless teacher does not have."""
    case = next(key for key in registry_cases() if key.startswith(f"{name}-"))
    method, cfg, student, teacher, data = registry_cases()[case]
    cfg = dataclasses.replace(cfg, div=0.0)
    step = make_step(method, cfg, student, lambda: without_classifier(teacher(), "a test"), data, B)
    step.train()
    return step(data.batch(), PROGRESS).loss
