"""What a process holds, what is left, and how many students that train together fit into it."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import torch

from helper.protocols import UserError


def held(device: torch.device) -> int:
    """Bytes this process holds now: tensors on the accelerator, or resident memory."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no /proc: the most it ever held
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free(device: torch.device) -> int | None:
    """Bytes that can still be had; None where the system does not tell."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return kilobytes.get("MemAvailable", 0) * 1024 or None


def is_exhausted(error: BaseException) -> bool:
    """Whether an allocation failed, on an accelerator or (as torch says it there) on a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class LaneMemory:
    """Watches the first steps of students that train together, and refuses the ones that will not fit.

    A student's first step leaves its gradients and its optimiser's state behind; what it needed in between is free
    again for the next one. After each student's first step: UserError if the students still to come, at the mean of
    those seen, need more than is left.
    """

    def __init__(self, lanes: int, device: torch.device):
        self.lanes, self.device = lanes, device
        self.started, self.seen = held(device), 0

    def after_first_step(self) -> None:
        """Called once by each student."""
        self.seen += 1
        each = max(0, held(self.device) - self.started) // self.seen
        left, to_come = free(self.device), self.lanes - self.seen
        if left is not None and each * to_come > left:
            raise self.too_many(self.seen + left // each, f"each needs {each} more bytes, {left} are free")

    def too_many(self, fit: int, why: str) -> UserError:
        if self.lanes == 1:
            return UserError(
                f"the step does not fit into the memory of {self.device} ({why}): lower --batch_size, or pass "
                "--accumulate 2"
            )
        return UserError(
            f"{self.lanes} students do not fit into the memory of {self.device} together ({why}): about {max(1, fit)} "
            "do; list fewer in --distill and --model_s, or lower --batch_size"
        )

    def exhausted(self, error: Exception) -> UserError:
        """For an allocation that failed in a step."""
        return self.too_many(self.seen, str(error).splitlines()[0].rstrip("."))
