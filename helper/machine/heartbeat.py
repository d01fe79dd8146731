"""Processes of a run watch each other, so that a process that hangs, is stopped or has lost its machine is noticed.

The time limit of a collective must allow for hours of validation. A heartbeat need not: its thread counts while the
process computes or waits, and ends with the process.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch.distributed as dist


class Heartbeat:
    """Counts in the launcher's store and reads the counts of the other processes.

    lost: called in a thread when a process has not counted for `timeout` seconds.
    """

    def __init__(self, rank: int, size: int, timeout: float, lost: Callable[[], None]):
        self.rank, self.size, self.timeout, self.lost = rank, size, timeout, lost
        self.period = min(timeout / 5, 2.0)
        self.counts = [-1] * size
        self.heard = [time.monotonic()] * size  # when a count last grew
        self.ended = threading.Event()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._watch)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.ended.set()

    def _beat(self) -> None:
        """A separate connection, as it may block while the store's process is stopped."""
        with contextlib.suppress(RuntimeError, OSError):  # the store is gone: _watch() sees no count grow
            where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            wait = timedelta(seconds=self.timeout)
            store = dist.PrefixStore(
                f"heartbeat{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}",
                dist.TCPStore(*where, is_master=False, timeout=wait),
            )
            while not self.ended.is_set():
                store.add(str(self.rank), 1)
                for rank in range(self.size):
                    count = store.add(str(rank), 0)
                    if count != self.counts[rank]:
                        self.counts[rank], self.heard[rank] = count, time.monotonic()
                self.ended.wait(self.period)

    def _watch(self) -> None:
        before = time.monotonic()
        while not self.ended.wait(self.period):
            now = time.monotonic()
            if now - before > 3 * self.period:  # this process itself was stopped; so may be the others
                self.heard = [now] * self.size
            before = now
            # that has counted before
            alive = [heard for heard, count in zip(self.heard, self.counts, strict=True) if count > 0]
            if alive and now - min(alive) > self.timeout:
                self.lost()
                return
