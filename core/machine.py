"""The machine: free memory, usable cores, and the rank of this process in the run."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import psutil
import torch

CPU = torch.device("cpu")


def free(device: torch.device = CPU) -> int:
    """Free memory of a device, in bytes."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available


def fresh(shape: Sequence[int]) -> torch.Tensor:
    """An uninitialised float32 tensor on the CPU, in huge pages, which NumPy requests and torch does not: page faults
    of 38 MB take a third of the time."""
    return torch.from_numpy(np.empty(tuple(shape), np.float32))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or the machine ran out of memory; torch has several messages for it."""
    said = ("can't allocate memory", "not enough memory", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in str(error) for words in said)


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return all(name in os.environ for name in ENVIRONMENT)


def rank() -> int:
    """Number of this process in the run; 0 for a single process."""
    return int(os.environ["RANK"]) if launched() else 0


def is_main() -> bool:
    """Whether this is rank 0, which alone writes files and logs."""
    return rank() == 0


def local_rank() -> int:
    """Number of this process on its machine; 0 for a single process."""
    return int(os.environ.get("LOCAL_RANK", 0)) if launched() else 0


def local_world_size() -> int:
    """How many processes of the run are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if launched() else 1
