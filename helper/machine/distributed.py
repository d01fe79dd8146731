"""Several processes for one run or test: torchrun's environment, the launcher of the published flags, exchange between
ranks.

Processes come from `torchrun` (or anything that sets RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), or from
--multiprocessing_distributed, which calls the same launcher. Every collective of this file runs on the host, over a
separate gloo group ("control"), which may wait long; gradients use the main group, which must not wait longer than
--dist_timeout. With one process every function returns at once.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import logging
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch import nn

from core.log import log_to_file
from core.machine import is_main, launched, local_world_size, rank
from core.option import RESULT, Around, Config, at_least, flags_in, option, positive
from core.protocols import UserError, first_line
from helper.machine.heartbeat import Heartbeat


@dataclass(frozen=True)
class LaunchConfig(Config):
    heading = "several processes"

    multiprocessing_distributed: bool = option(False, "one process per GPU of --gpu_id")
    dist_url: str = option(
        "tcp://127.0.0.1:23451", "address of the first node, for --multiprocessing_distributed", metavar="URL"
    )
    dist_backend: str | None = option(
        None, "communication between processes (default: nccl on CUDA, else gloo)", choices=("nccl", "gloo")
    )
    world_size: int | None = option(None, "number of nodes, for --multiprocessing_distributed", check=at_least(1))
    rank: int | None = option(None, "number of this node, from 0", check=at_least(0))
    dist_timeout: float = option(
        50.0,
        "seconds to wait for the other processes at the start, and for each of their steps in training",
        check=positive,
    )

    def idle(self, around: Around) -> dict[str, str]:
        if around.processes > 1:
            return {}
        return self.every_flag("one process") | {"multiprocessing_distributed": "one process is enough for one device"}


@dataclass(frozen=True)
class RanksConfig(Config):
    heading = "several processes in training"

    sync_bn: bool = option(False, "compute batch-norm statistics over all processes (CUDA only)", role=RESULT)
    log_all_ranks: bool = option(False, "write one log file per process: log_rank1.txt and so on")

    def idle(self, around: Around) -> dict[str, str]:
        return {} if around.processes > 1 else self.every_flag("one process")


LAUNCH = flags_in(LaunchConfig)
T = TypeVar("T")
CONTROL_TIMEOUT = timedelta(hours=2)  # ranks may differ this long: validation of a teacher, decoding of a data set
SPEAK_AFTER = 3.0  # seconds that other ranks give rank 0 to report a common error


_control: Any = None  # the process group of this file's collectives; None: one process


class RankLost(UserError):  # noqa: N818 (it names what happened to another)
    """Another process of the run has ended or hangs; noticed in a collective."""


def world_size() -> int:
    """Number of processes of the run."""
    return 1 if _control is None else dist.get_world_size()


def restarts() -> int:
    """Number of times the launcher has restarted this run; the largest count of all nodes."""
    return max(gather(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))))


def check_backend(backend: str | None, processes: int) -> str:
    """nccl or gloo; processes: on this machine. UserError if nccl has no GPU for each of them."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    backend = backend or ("nccl" if gpus >= processes else "gloo")
    if backend == "nccl" and not gpus:
        raise UserError("--dist_backend nccl needs CUDA devices, but this machine has none: use --dist_backend gloo")
    if backend == "nccl" and gpus < processes:
        raise UserError(
            f"--dist_backend nccl needs a GPU per process: {processes} processes were started here and there are "
            f"{gpus} GPUs; start {gpus}, or use --dist_backend gloo"
        )
    if not getattr(dist, f"is_{backend}_available")():
        raise UserError(f"this build of torch has no {backend}: choose another --dist_backend")
    return backend


@contextlib.contextmanager
def process_group(backend: str | None, timeout: float, advice: str = "") -> Iterator[None]:
    """Inside the context, the processes of the launcher form one group. UserError if the address is used by another
    process or does not answer.

    advice: what to do if another process is lost, see lost_ranks().
    """
    global _control
    if not launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    chosen = check_backend(backend, local_world_size())
    wait = timedelta(seconds=timeout)
    try:
        store, place, size = next(dist.rendezvous("env://", timeout=wait))
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            # the launcher's store survives a restart, with the addresses of ended processes
            store = dist.PrefixStore(f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(chosen, store=store, rank=place, world_size=size, timeout=wait)
        # created once, with the short timeout: a process that is missing now will not come
        _control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(_no_rendezvous(where, error, timeout)) from error
    with lost_ranks(advice), Heartbeat(place, size, timeout, partial(_hangs, advice)).running():
        yield
        dist.barrier(_control)
    # not after an error: destroying a group that has lost a member may hang, and the process ends anyway
    with contextlib.suppress(RuntimeError):
        dist.destroy_process_group()
    _control = None


def _no_rendezvous(where: str, error: BaseException, timeout: float) -> str:
    text = first_line(error)
    if "address already in use" in str(error).lower() or "EADDRINUSE" in str(error):
        return f"the port of {where} is used by another process: choose another one (--dist_url, --master_port)"
    if any(word in text.lower() for word in ("timed out", "timeout", "refused", "not all", "could not", "failed to")):
        return (
            f"the processes of this run did not meet at {where} within {timeout:g} s: check that all were started, "
            f"check address, port and firewall, or raise --dist_timeout ({text[:160]})"
        )
    return f"the processes of this run could not meet at {where}: {text[:200]}"


HANGS = "another process of this run does not answer (it hangs, or its machine is down), so this one stops"


def _hangs(advice: str) -> None:
    """End this process, even if its main thread waits in a collective."""
    message = f"{HANGS}{advice}"
    log_to_file(message)
    print(message if is_main() else f"[rank {rank()}] {message}", file=sys.stderr, flush=True)
    time.sleep(SPEAK_AFTER)
    leave(2)


@contextlib.contextmanager
def lost_ranks(advice: str = "") -> Iterator[None]:
    """Turn a collective's error about a dead or hanging process into one sentence, followed by the advice."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        text = str(error)
        if not isinstance(error, dist.DistError) and "gloo" not in text:
            raise
        if "imed out" in text or "timeout" in text.lower():
            raise RankLost(f"{HANGS}{advice}") from error
        raise RankLost(f"another process of this run has ended, so this one stops{advice}") from error


def gather(value: T) -> list[T]:
    """The value of every process, in rank order, in every process."""
    if _control is None:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, _control)
    return values


def broadcast(value: T) -> T:
    """Rank 0's value."""
    if _control is None:
        return value
    box = [value]
    dist.broadcast_object_list(box, 0, group=_control)
    return box[0]


def by_main(work: Callable[[], T]) -> T:
    """Rank 0 calls work(); all processes get its return value, or its UserError."""
    if _control is None:
        return work()
    result: Any = None
    error: UserError | None = None
    if is_main():
        try:
            result = work()
        except UserError as raised:
            error = raised
    result, message = broadcast((result, None if error is None else str(error)))
    if error is not None:
        raise error
    if message is not None:
        raise UserError(message)
    return result


def main_first(work: Callable[[], T]) -> T:
    """All processes call work(), rank 0 first, so that the others find what it created."""
    first: list[T] = []
    by_main(lambda: first.append(work()))
    return first[0] if first else work()


class Agreement:
    """A number that all processes learn at the same poll, without waiting for each other: each poll starts an exchange
    and returns the largest number of the previous one."""

    def __init__(self) -> None:
        self.agreed = 0
        self._value = torch.zeros(1, dtype=torch.int64)
        self._work: Any = None

    def poll(self, mine: int) -> int:
        """All processes must poll equally often."""
        if _control is None:
            return mine
        if self.agreed:
            return self.agreed
        if self._work is not None:
            self._work.wait()
            self.agreed = int(self._value)
        if not self.agreed:
            self._value = torch.tensor([mine])
            self._work = dist.all_reduce(self._value, dist.ReduceOp.MAX, group=_control, async_op=True)
        return self.agreed


@torch.no_grad()
def share_statistics(module: nn.Module) -> None:
    """Copy rank 0's batch-norm statistics to every process, before evaluation or saving."""
    if _control is None:
        return
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    buffers = [b for m in norms for b in m.buffers()]
    if buffers:
        flat = torch.cat([b.flatten().to(torch.float64) for b in buffers])
        dist.broadcast(flat, 0)
        for b, value in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            b.copy_(value.view_as(b))


def ddp(module: nn.Module) -> nn.Module:
    """The root in DistributedDataParallel, if there are several processes and trainable parameters."""
    if _control is None or not any(p.requires_grad for p in module.parameters()):
        return module
    device = next(module.parameters()).device
    ids = [device] if device.type == "cuda" else None
    # buffers are not broadcast: batch norm is local, as published, and memory banks are equal anyway
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    local: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    return nn.parallel.DistributedDataParallel(module, device_ids=ids, **local)


def sync_batch_norm(module: nn.Module) -> nn.Module:
    """Replace batch norms with torch's synchronised ones. UserError for kinds that do more than normalise."""
    known = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm}
    norms = {type(m) for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)} - known
    if {norm.__name__ for norm in norms} == {"BatchNormAct2d"}:  # timm's, with an activation
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(module)
    if norms:
        raise UserError(f"--sync_bn cannot synchronise {', '.join(sorted(n.__name__ for n in norms))}: leave it out")
    return nn.SyncBatchNorm.convert_sync_batchnorm(module)


def in_processes(
    asked: LaunchConfig, gpu_id: str, argv: Sequence[str], work: Callable[[], object], advice: str = ""
) -> None:
    """Start this script with `argv` in the requested processes; in one of them, or without such a request, do the work.

    advice: what to do if a process is lost, see lost_ranks().
    """
    if (wanted := wanted_launch(asked, gpu_id)) is not None:
        if code := launch(*wanted, argv, asked.dist_timeout):
            raise SystemExit(code)
        return
    with process_group(asked.dist_backend, asked.dist_timeout, advice):
        work()


def wanted_launch(asked: LaunchConfig, gpu_id: str) -> tuple[str, list[str]] | None:
    """(address of the first node, torchrun's arguments) for the processes to start; None: none. UserError if flags
    contradict each other."""
    if not asked.multiprocessing_distributed or launched():
        return None
    url, timeout = asked.dist_url, asked.dist_timeout
    nodes = 1 if asked.world_size is None else asked.world_size
    node = 0 if asked.rank is None else asked.rank
    ids = [part for part in gpu_id.split(",") if part.strip()]
    if not ids:
        raise UserError(f"--gpu_id '{gpu_id}' must name GPUs, such as 0,1")
    if nodes < 1 or not 0 <= node < nodes:
        raise UserError(f"--rank {node} must be the number of this node, from 0 to --world_size {nodes} - 1")
    if len(ids) == 1 and nodes == 1:
        return None
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if parts.scheme == "env":
        host, port = os.environ.get("MASTER_ADDR"), int(os.environ.get("MASTER_PORT") or 0)
    elif parts.scheme != "tcp":
        host = None
    if not host or not port:
        raise UserError(f"--dist_url {url} must give address and port of the first node, such as tcp://127.0.0.1:23451")
    check_backend(asked.dist_backend, len(ids))
    if node == 0 and _taken(host, port):
        raise UserError(f"--dist_url {url}: port {port} is used by another process: choose another one")
    if node and not _answers(host, port, timeout):
        raise UserError(
            _no_rendezvous(f"{host}:{port}", TimeoutError("timed out: no answer from this address"), timeout)
        )
    command = [f"--nproc_per_node={len(ids)}", f"--nnodes={nodes}", f"--node_rank={node}", f"--master_addr={host}"]
    return f"{host}:{port}", [*command, f"--master_port={port}", "--rdzv_backend=static"]


def _taken(host: str, port: int) -> bool:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        return error.errno == errno.EADDRINUSE  # another error: an address of another machine, or no such name
    return False


def _answers(host: str, port: int, timeout: float) -> bool:
    """Whether the first node answers in time; tested before torchrun starts, which would print a traceback."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=until - time.monotonic()):
            return True
        time.sleep(0.2)
    return False


def launch(where: str, command: Sequence[str], argv: Sequence[str], timeout: float) -> int:
    """Run this script in several processes, through torchrun's launcher; returns the exit code of the first failure.

    UserError if the nodes do not meet.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the failed process reports the error
    try:
        run(parse_args([*command, f"--rdzv_conf=timeout={timeout:g}", str(Path(sys.argv[0]).resolve()), *argv]))
    except ChildFailedError as failed:
        first = failed.get_first_failure()[1]
        return first.exitcode if first.exitcode >= 0 else 128 - first.exitcode
    except SignalException as stop:
        return 128 + int(stop.sigval)
    except (RuntimeError, TimeoutError, OSError) as error:
        raise UserError(_no_rendezvous(where, error, timeout)) from error
    return 0


def leave(code: int) -> None:
    """End a process that was part of a group. Skips the interpreter's shutdown, in which gloo's threads may abort."""
    for child in multiprocessing.active_children():  # loader workers would otherwise live for some seconds
        child.terminate()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
