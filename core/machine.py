"""The machine: free memory, usable cores, and this process's place among those of the run."""

from __future__ import annotations

import os
from pathlib import Path

import torch


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


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had too little memory, which torch says in several ways."""
    said = ("can't allocate memory", "not enough memory", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in str(error) for words in said)


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _available_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> bool:
    """Whether this process is one of those that a launcher started."""
    return all(name in os.environ for name in ENVIRONMENT)


def rank() -> int:
    return int(os.environ["RANK"]) if launched() else 0


def is_main() -> bool:
    """Whether this process writes files and speaks."""
    return rank() == 0


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0)) if launched() else 0


def local_world_size() -> int:
    """How many processes of the run are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if launched() else 1
