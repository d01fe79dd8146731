"""Output of a run: event files with its curves."""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.protocols import UserError, first_line


class Writer:
    """Event files of --tb_backend: one scalar per tag and epoch. A full disk is a UserError; the run can be resumed.

    Old event files are deleted first: a killed run may have written more or less than its last state.
    """

    def __init__(self, backend: str, folder: Path):
        self.folder = folder
        self.tensorboard: Any = None
        with self._writing():
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
            if backend == "tensorboard_logger":
                self.add = _tensorboard_logger().Logger(logdir=str(folder), flush_secs=2).log_value
                return
            from torch.utils.tensorboard import SummaryWriter

            _quiet_about_events()
            self.tensorboard = SummaryWriter(str(folder), flush_secs=10)
            self.add = self.tensorboard.add_scalar

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write event files in {self.folder}: {error.strerror or error}") from error

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        with self._writing():
            for tag, value in values.items():
                self.add(tag, value, epoch)
            if self.tensorboard is not None:
                self.tensorboard.flush()

    def close(self) -> None:
        # scalars() has reported write errors; they must not hide the error that ends the run
        with contextlib.suppress(OSError):
            if self.tensorboard is not None:
                self.tensorboard.close()


def _quiet_about_events() -> None:
    """tensorboard's thread prints the traceback of an OSError and raises it in the next call; the latter is enough."""
    before = threading.excepthook
    if before.__name__ == "_report":
        return

    def _report(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__name__ == "_AsyncWriterThread"):
            before(args)

    threading.excepthook = _report


def _tensorboard_logger() -> Any:
    # the package's generated code predates protobuf 4; only the pure-Python implementation reads it
    os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"
    return importlib.import_module("tensorboard_logger")


def require_backend(backend: str) -> None:
    """UserError if the writer of --tb_backend cannot be imported; called before the run writes anything."""
    try:
        if backend == "tensorboard":
            import torch.utils.tensorboard  # noqa: F401
        elif backend == "tensorboard_logger":
            _tensorboard_logger()
    except (ImportError, TypeError) as error:  # TypeError: protobuf refuses generated code it deems too old
        raise UserError(
            f"--tb_backend {backend} needs the package {backend} (pip install {backend}), "
            f"or pass --tb_backend none ({first_line(error)})"
        ) from error
