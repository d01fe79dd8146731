"""The logger of the toolbox: console, log files, labels of students that train together."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from core import lock, machine
from core.protocols import explained

T = TypeVar("T")
log = logging.getLogger("retort")


class _Console(logging.StreamHandler[Any]):
    """Standard output as it is at the time of the message."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stdout


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Ignore a log line that cannot be written: results are saved elsewhere, and their writers report errors."""


class _Labelled(logging.Formatter):
    """Labels each line with its student when several train in one process."""

    def format(self, record: logging.LogRecord) -> str:
        label = record.name.removeprefix(log.name).lstrip(".")
        return f"[{label}] {super().format(record)}" if label else super().format(record)


_run_logs: list[logging.Logger] = []


def start_log() -> None:
    """Send messages to standard output. Close the log files of earlier runs in this process and free their folders."""
    lock.release()
    log.setLevel(logging.INFO)
    log.propagate = False
    for logger in _run_logs:
        for handler in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
            logger.removeHandler(handler)
            handler.close()
    _run_logs.clear()
    if not log.handlers:
        console: logging.Handler = _Console() if machine.is_main() else logging.NullHandler()
        console.setFormatter(_Labelled("%(message)s"))
        log.addHandler(console)


def open_run_log(path: Path, label: str | None = None) -> logging.Logger:
    """A run's own log: messages go to its file and to standard output; standard output shows the label, if any."""
    logger = log if label is None else log.getChild(label.replace(".", "_"))
    with explained(f"cannot write the log {path}"):
        file = _File(path)
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(file)
    _run_logs.append(logger)
    return logger


def log_to_file(message: str) -> None:
    """Skips messages that were already printed."""
    for logger in _run_logs:
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handle(log.makeRecord(log.name, logging.INFO, "", 0, message, (), None))


def progress(parts: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """Iterate over parts, with a progress bar on a terminal after two seconds; silent elsewhere.
    total: the number of parts, if len(parts) does not give it."""
    if not (machine.is_main() and sys.stderr.isatty()):
        return parts
    from tqdm import tqdm

    return tqdm(parts, what, total, leave=False, delay=2, mininterval=0.5)


def clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, s = divmod(int(seconds), 60)
    h, m = divmod(minutes, 60)
    return f"{h}:{m:02d}:{s:02d}" if h else f"{m}:{s:02d}"
