"""Output of a run: event files with its curves."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from core.protocols import UserError


class Writer(Protocol):
    """Event files: one scalar per tag and epoch."""

    def scalars(self, values: Mapping[str, float], epoch: int) -> None: ...

    def close(self) -> None: ...


class _TensorboardWriter:
    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        _quiet_about_events()
        self.writer = SummaryWriter(str(folder), flush_secs=10)

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, epoch)
        self.writer.flush()

    def close(self) -> None:
        # scalars() has reported write errors; they must not hide the error that ends the run
        with contextlib.suppress(OSError):
            self.writer.close()


def _quiet_about_events() -> None:
    """tensorboard's thread prints the traceback of an OSError and raises it in the next call; the latter is enough."""
    before = threading.excepthook
    if before.__name__ == "_report":
        return

    def _report(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__name__ == "_AsyncWriterThread"):
            before(args)

    threading.excepthook = _report


class _TensorboardLoggerWriter:
    def __init__(self, folder: Path):
        _import_tensorboard_logger()
        from tensorboard_logger import Logger

        self.logger = Logger(logdir=str(folder), flush_secs=2)

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        for tag, value in values.items():
            self.logger.log_value(tag, value, epoch)

    def close(self) -> None:
        return None


def _import_tensorboard_logger() -> None:
    # the package's generated code predates protobuf 4; only the pure-Python implementation reads it
    os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"
    import tensorboard_logger  # noqa: F401


def require_backend(backend: str) -> None:
    """UserError if the writer of --tb_backend cannot be imported; called before the run writes anything."""
    try:
        if backend == "tensorboard":
            import torch.utils.tensorboard  # noqa: F401
        elif backend == "tensorboard_logger":
            _import_tensorboard_logger()
    except (ImportError, TypeError) as error:  # TypeError: protobuf refuses generated code it deems too old
        raise UserError(
            f"--tb_backend {backend} needs the package {backend} (pip install {backend}), "
            f"or pass --tb_backend none ({str(error).splitlines()[0]})"
        ) from error


class _Guarded:
    """Turns a full disk into a UserError; the run can be resumed."""

    def __init__(self, writer: Writer, folder: Path):
        self.writer, self.folder = writer, folder

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        try:
            self.writer.scalars(values, epoch)
        except OSError as error:
            raise UserError(f"cannot write event files in {self.folder}: {error.strerror or error}") from error

    def close(self) -> None:
        self.writer.close()


def event_writer(backend: str, folder: Path) -> Writer | None:
    """backend: tensorboard, tensorboard_logger or none (None). Old event files are deleted first:
    a killed run may have written more or less than its last state."""
    if backend == "none":
        return None
    try:
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        writer = _TensorboardLoggerWriter(folder) if backend == "tensorboard_logger" else _TensorboardWriter(folder)
    except OSError as error:
        raise UserError(f"cannot write event files in {folder}: {error.strerror or error}") from error
    return _Guarded(writer, folder)
