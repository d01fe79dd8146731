"""Batches that are decoded by worker processes, and the start and failure of these processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from core.log import log
from core.protocols import Batch, Loader, UserError
from dataset.images.files import UnreadableError, say_unusual, unusual
from dataset.order import Place

TIMEOUT = 600.0  # seconds without a batch until the run ends

Item = tuple[Tensor, int, int, str]  # pixels, label, position, why a sample could not be read ("" if it was read)


@dataclass(frozen=True)
class Decoded(Dataset[Item | UserError]):
    """Samples by place. view: place -> uint8 pixels and label. what: the word for samples.

    skip: leave an unreadable sample out, or with `replace` take the next one that can be read, so that batches have the
    same size in all processes. An error is returned instead of raised, as the loader would add the worker's traceback.
    """

    view: Callable[[int, Any], tuple[Tensor, int]]
    count: int
    what: str
    skip: bool
    replace: bool

    def __getitem__(self, place: Place) -> Item | UserError:
        position, key = place
        why = ""
        for tried in range(self.count if self.replace else 1):
            at = (position + tried) % self.count
            try:
                return *self.view(at, key), at, why
            except UnreadableError as error:
                if not self.skip:
                    return UserError(f"{error}{error.advice}")
                why = why or str(error)
            except UserError as error:
                return error
        if self.replace:
            return UserError(f"none of the {self.count} {self.what} can be read; the first error: {why}")
        return torch.empty(0), 0, position, why


Collated = tuple[Tensor, Tensor, Tensor, list[str], list[tuple[str, str]]]


def collated(items: Sequence[Item | UserError]) -> Collated | UserError:
    """Pixels uint8 [B, ...], labels [B] and positions [B] of the samples that were read, reasons of the others, and
    unusual properties. Grey clips get the channels of the others."""
    if (error := next((item for item in items if isinstance(item, UserError)), None)) is not None:
        return error
    whole = [item for item in items if not isinstance(item, UserError)]
    read = [item for item in whole if len(item[0])]
    pixels = torch.stack(torch.broadcast_tensors(*(item[0] for item in read))) if read else torch.empty(0)
    labels, positions = (torch.tensor([item[i] for item in read], dtype=torch.int64) for i in (1, 2))
    return pixels, labels, positions, [why for *_, why in whole if why], unusual()


class WorkedLoader(Loader):
    """Batches of samples that worker processes decode; on a GPU they are copied one step ahead.

    plan: (epoch, first step) -> the places of every batch. finish: makes a Batch of pixels, labels and positions on the
    device. Unreadable samples are an error, or skipped and counted once each.
    """

    def __init__(
        self,
        samples: Decoded,
        steps: int,
        plan: Callable[[int, int], list[list[Place]]],
        finish: Callable[[Tensor, Tensor, Tensor], Batch],
        device: torch.device,
        workers: int,
    ):
        super().__init__(steps)
        self.samples, self.plan, self.finish, self.device = samples, plan, finish, device
        self.skipped: set[str] = set()
        self.chosen: list[list[Place]] = []  # the batches that the workers read
        workers = min(workers, steps)
        self.decoder = DataLoader(
            samples,
            batch_sampler=self.chosen,
            num_workers=workers,
            collate_fn=collated,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            timeout=TIMEOUT if workers else 0,
            worker_init_fn=start_worker,
            generator=torch.Generator(),  # not the run's own generator
        )

    def end_epoch(self) -> dict[str, int]:
        """For the epoch's row: the number of unreadable samples of this process so far."""
        return {f"skipped_{self.samples.what}": len(self.skipped)} if self.samples.skip else {}

    def batches(self, start: int) -> Iterator[Batch]:
        self.chosen[:] = self.plan(self.epoch, start)
        return (self.finish(*parts) for parts in ahead(self._read(), self.device))

    def _read(self) -> Iterator[Sequence[Tensor]]:
        for found in self.decoder:
            if isinstance(found, UserError):
                raise found
            *parts, reasons, notes = found
            say_unusual(notes)
            for reason in reasons:
                if reason not in self.skipped:
                    self.skipped.add(reason)
                    log.info("skipped: %s", reason)
            if len(parts[0]):
                yield [x.to(self.device, non_blocking=True) for x in parts]


def ahead(batches: Iterator[Sequence[Tensor]], device: torch.device) -> Iterator[Sequence[Tensor]]:
    """The same batches; on a GPU the next one is copied while the caller uses the present one."""
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)

    def fetch() -> Sequence[Tensor] | None:
        with torch.cuda.stream(stream):
            return next(batches, None)

    following = fetch()
    while following is not None:
        batch = following
        current = torch.cuda.current_stream(device)
        current.wait_stream(stream)
        for x in batch:
            x.record_stream(current)
        following = fetch()
        yield batch


def lost_worker(error: BaseException) -> str | None:
    """The message about a loader process that was killed or hangs (None for other errors); ends the other processes."""
    text = str(error)
    if "DataLoader timed out" not in text and "DataLoader worker" not in text:
        return None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises an error for each one that is killed
    for child in multiprocessing.active_children():
        child.kill()  # a stopped process ignores everything else, and the run would wait for it
    what = (
        f"the loader processes sent nothing for {TIMEOUT:g} s (a disk or a decoder hangs)"
        if "timed out" in text
        else f"a loader process was lost ({text.splitlines()[0].rstrip('. ')}; perhaps memory ran out)"
    )
    return (
        f"{what}: run the same command again to resume from the last checkpoint; fewer --num_workers need less "
        "memory, and 0 decodes in the main process"
    )


def start_worker(worker: int) -> None:
    """One thread each. Workers ignore SIGINT and foreign SIGTERM; only their own run ends them.

    torchrun and SLURM send SIGTERM to all processes of a run; if workers died of it, the run would fail before it could
    save its state.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run = multiprocessing.parent_process()
    if run is not None and hasattr(signal, "sigwaitinfo"):  # Linux; elsewhere any SIGTERM ends a worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_wait_for_the_end, args=(run.pid,), daemon=True).start()


def _wait_for_the_end(run: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run:
        pass
    os._exit(0)
