"""Ctrl-C and SIGTERM: training stops at a step and can be resumed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from helper.machine import distributed


class Interrupted(Exception):  # noqa: N818 (no error: the run can be resumed)
    """The user or the scheduler stopped training; the run can be resumed."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def interrupted(number: int, where: str) -> Interrupted:
    """By a signal; where: such as "in epoch 1 after step 3"."""
    return Interrupted(f"{signal.Signals(number).name}: stopped {where}", 128 + number)


class Stopper:
    """Ctrl-C and SIGTERM stop the loop at the next step; a second Ctrl-C stops at once."""

    signal: int | None = None

    def __init__(self) -> None:
        self._agreement = distributed.Agreement()

    def asked(self) -> int:
        """The signal to stop, or 0. All processes must call it equally often, and get the same result."""
        return self._agreement.poll(self.signal or 0)

    @contextmanager
    def listening(self) -> Iterator[Stopper]:
        before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
