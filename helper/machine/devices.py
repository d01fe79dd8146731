"""Devices and precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from core import machine
from core.log import log
from core.option import RESULT, Config, option
from core.protocols import UserError
from helper.machine import distributed


@dataclass(frozen=True)
class DeviceConfig(Config):
    heading = "device and precision"

    gpu_id: str = option(
        "0", "GPU to use, or one per process; without CUDA, a number means a process on the CPU", metavar="GPUS"
    )
    precision: str = option(
        "auto",
        "precision of the forward pass; auto: bf16 if the hardware supports it natively",
        choices=("auto", "bf16", "fp32"),
        role=RESULT,
    )
    deterministic: bool = option(False, "use deterministic kernels; operations without one are errors", role=RESULT)


def pick_device(gpu_id: str, place: int = 0, processes: int | None = None) -> tuple[torch.device, str | None]:
    """The device of --gpu_id, and a notice if it differs from the request.

    place: index of this process among several ids. processes: of the run; None for scripts that start only one.
    """
    ids = [part.strip() for part in gpu_id.split(",") if part.strip()]
    if not ids or not all(part.isdecimal() for part in ids):
        raise UserError(f"--gpu_id '{gpu_id}' must be a GPU number, such as 0")
    if not torch.cuda.is_available():
        return torch.device("cpu"), f"no CUDA device found: --gpu_id {gpu_id} runs on the CPU"
    chosen = int(ids[place % len(ids)])
    if chosen >= torch.cuda.device_count():
        raise UserError(
            f"--gpu_id {chosen}: this machine has {torch.cuda.device_count()} CUDA device(s), numbered from 0"
        )
    # float32 means float32, without TF32; bf16 is for speed
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    notice = None
    if len(ids) > 1 and processes in (None, 1):
        several = "" if processes is None else "add --multiprocessing_distributed, or "
        notice = f"--gpu_id {gpu_id} names {len(ids)} devices, but this process uses only the first: {several}name one"
    return torch.device("cuda", chosen), notice


def own_device(gpu_id: str, *, named: bool) -> torch.device:
    """The device of this process: its entry of --gpu_id, or its local rank if none was given."""
    place = machine.local_rank()
    if not named and place:
        gpu_id = ",".join(map(str, range(place + 1)))
    device, notice = pick_device(gpu_id, place, distributed.world_size())
    if notice:
        log.info(notice)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # otherwise pinned memory and the like would use another device
    return device


def native_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic is done by the hardware rather than emulated."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    has = [getattr(torch.cpu, f"_is_{name}_supported", bool) for name in ("avx512_bf16", "amx_tile")]
    return any(check() for check in has)


def pick_autocast(precision: str, device: torch.device) -> torch.dtype | None:
    """--precision auto|bf16|fp32 -> autocast dtype, None for float32."""
    if precision == "bf16" or (precision == "auto" and native_bf16(device)):
        return torch.bfloat16
    return None
