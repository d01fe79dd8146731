"""Ctrl-C and SIGTERM: training stops at a step and can be resumed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from helper.machine import distributed


class Interrupted(Exception):  # noqa: N818 (no error: the run can be resumed)
    """Training stopped at the user's or the scheduler's wish; the run can be continued."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class Stopper:
    """Ctrl-C and SIGTERM ask the loop to stop at the next step; a second Ctrl-C does not wait."""

    signal: int | None = None

    def __init__(self) -> None:
        self._agreement = distributed.Agreement()

    def asked(self) -> int:
        """The signal that asked to stop, else 0. All processes must ask equally often, and get the same answer."""
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
