"""Free memory, and the number of jointly trained students that fit into it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from core.machine import free
from core.protocols import UserError, first_line


def kept_by(optimizers: Iterable[Optimizer]) -> int:
    """Bytes of gradients and optimiser state, which the first step of a student allocates and keeps."""
    tensors: list[Tensor] = []
    for optimizer in optimizers:
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            state = [v for v in optimizer.state.get(p, {}).values() if isinstance(v, Tensor)]
            tensors += state if p.grad is None else [*state, p.grad]
    return sum(x.numel() * x.element_size() for x in tensors)


class LaneMemory:
    """Measures the first steps of students that train together, and raises UserError if not all of them fit.

    After each student's first step: UserError if the remaining students would keep more memory than is free, assuming
    the mean of those measured. Temporary memory of a step is reused by the next student; if it runs out, see
    exhausted().
    """

    def __init__(self, lanes: int, device: torch.device):
        self.lanes, self.device = lanes, device
        self.seen = self.kept = 0

    def after_first_step(self, kept: int) -> None:
        """Called once for each student. kept: bytes, as kept_by()."""
        self.seen += 1
        self.kept += kept
        each, to_come = self.kept // self.seen, self.lanes - self.seen
        left = free(self.device) if to_come else None
        if left is not None and each * to_come > left:
            raise self.too_many(self.seen + left // each, f"each needs {each} bytes, {left} are free")

    def too_many(self, fit: int, why: str) -> UserError:
        return UserError(
            f"{self.lanes} students do not fit into the memory of {self.device} together ({why}): list at most about "
            f"{max(1, fit)} in --distill and --model_s, or lower --batch_size"
        )

    def exhausted(self, error: Exception) -> UserError:
        """For an allocation that failed in a step."""
        return self.too_many(self.seen, first_line(error).rstrip("."))
