"""What a run tells the outside: console and log lines, a progress bar, event files."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from helper import distributed
from helper.protocols import UserError

log = logging.getLogger("retort")


class _Console(logging.StreamHandler):
    """Standard output as it is at the time of the message."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stdout


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """A log line that cannot be written costs nothing; what matters is saved elsewhere, with errors of its own."""


class _Labelled(logging.Formatter):
    """Several students in one process: whose line it is."""

    def format(self, record: logging.LogRecord) -> str:
        label = record.name.removeprefix(log.name).lstrip(".")
        return f"[{label}] {super().format(record)}" if label else super().format(record)


_run_logs: list[logging.Logger] = []


def start_log() -> None:
    """Messages to standard output; the files of earlier runs in this process are closed."""
    log.setLevel(logging.INFO)
    log.propagate = False
    for logger in _run_logs:
        for handler in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
            logger.removeHandler(handler)
            handler.close()
    _run_logs.clear()
    if not log.handlers:
        console: logging.Handler = _Console() if distributed.is_main() else logging.NullHandler()
        console.setFormatter(_Labelled("%(message)s"))
        log.addHandler(console)


def open_run_log(path: Path, label: str | None = None) -> logging.Logger:
    """A run's own log: messages go to its file and to standard output, there with the label if it has one."""
    logger = log if label is None else log.getChild(label.replace(".", "_"))
    try:
        file = _File(path)
    except OSError as error:
        raise UserError(f"cannot write the log {path}: {error.strerror}") from error
    claim(file.stream, path.parent)
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(file)
    _run_logs.append(logger)
    return logger


def claim(file: IO[str], folder: Path) -> None:
    """Lock a run's open log; UserError where another process trains that run. The lock goes with the process."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"another process is training {folder}: wait for it or stop it, or choose another --trial"
        ) from error
    except OSError:  # nor on this file system
        return


def log_to_file(message: str) -> None:
    """A message that the console has seen already."""
    for logger in _run_logs:
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handle(log.makeRecord(log.name, logging.INFO, "", 0, message, (), None))


class Writer(Protocol):
    """Event files: one scalar per tag and epoch."""

    def scalars(self, values: Mapping[str, float], epoch: int) -> None: ...

    def close(self) -> None: ...


class _NoWriter:
    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        return None

    def close(self) -> None:
        return None


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
        # what could not be written was reported by scalars(), and must not hide the error that ends the run
        with contextlib.suppress(OSError):
            self.writer.close()


def _quiet_about_events() -> None:
    """tensorboard's own thread hands its OSError to the next call, after printing a traceback; the former is enough."""
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
    # the package's generated code predates protobuf 4; only the pure-Python implementation still reads it
    os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"
    import tensorboard_logger  # noqa: F401


def require_backend(backend: str) -> None:
    """UserError where the writer of --tb_backend cannot be imported; before anything of the run is written."""
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
    """A disk that is full is the user's to mend: one sentence, and the run goes on from its last state."""

    def __init__(self, writer: Writer, folder: Path):
        self.writer, self.folder = writer, folder

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        try:
            self.writer.scalars(values, epoch)
        except OSError as error:
            raise UserError(f"cannot write event files in {self.folder}: {error.strerror or error}") from error

    def close(self) -> None:
        self.writer.close()


def event_writer(backend: str, folder: Path) -> Writer:
    """backend: tensorboard, tensorboard_logger or none. Starts from nothing: old event files are deleted, so that
    neither what a killed run wrote beyond its last state nor what it did not come to write shows."""
    if backend == "none":
        return _NoWriter()
    try:
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        writer = _TensorboardLoggerWriter(folder) if backend == "tensorboard_logger" else _TensorboardWriter(folder)
    except OSError as error:
        raise UserError(f"cannot write event files in {folder}: {error.strerror or error}") from error
    return _Guarded(writer, folder)


class ProgressLine:
    """Live bar on a terminal; elsewhere a line every print_freq steps, at most one in ten seconds.

    Reading the meter makes the host wait for the device, hence the limit. shown: whether to say anything at all.
    """

    def __init__(
        self,
        epoch: int,
        epochs: int,
        steps: int,
        batch_size: int,
        print_freq: int,
        start_step: int = 0,
        logger: logging.Logger = log,
        shown: bool = True,
    ):
        self.log, self.shown = logger, shown
        self.epoch, self.epochs, self.steps, self.batch_size, self.print_freq = (
            epoch,
            epochs,
            steps,
            batch_size,
            print_freq,
        )
        self.started = self.read_at = time.monotonic()
        self.start_step = start_step
        self.bar: Any = None
        if shown and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=steps,
                initial=start_step,
                desc=f"Epoch {epoch}/{epochs}",
                unit="step",
                leave=False,
                mininterval=0.5,
            )

    def due(self, step: int) -> bool:
        """Whether this step should read the meter; moves the bar on the way."""
        if self.bar is not None:
            self.bar.update(1)
        now = time.monotonic()
        interval = 5 if self.bar is not None else 10
        wanted = self.bar is not None or (self.shown and (step + 1) % self.print_freq == 0)
        if wanted and now - self.read_at >= interval:
            self.read_at = now
            return True
        return False

    def show(self, step: int, means: Mapping[str, float]) -> None:
        elapsed = time.monotonic() - self.started
        done = step + 1 - self.start_step
        rate = done * self.batch_size / elapsed
        left = (self.steps * (self.epochs - self.epoch + 1) - step - 1) * elapsed / done
        text = f"{rate:.0f} img/s, loss {means['loss']:.4f}, Acc@1 {means['acc']:.2f}, left {clock(left)}"
        if self.bar is not None:
            self.bar.set_postfix_str(text)
        else:
            self.log.info("Epoch: [%d][%d/%d]\t%s", self.epoch, step + 1, self.steps, text)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, s = divmod(int(seconds), 60)
    h, m = divmod(minutes, 60)
    return f"{h}:{m:02d}:{s:02d}" if h else f"{m}:{s:02d}"
