"""What a run tells the outside: console and log lines, a progress bar, event files."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from helper.protocols import UserError

log = logging.getLogger("retort")


def start_log(path: Path | None = None) -> None:
    """Messages to standard output, and to the run's log file once there is one."""
    log.setLevel(logging.INFO)
    log.propagate = False
    if not log.handlers:
        console = logging.StreamHandler(sys.stdout)
        console.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(console)
    if path is not None:
        for handler in [h for h in log.handlers if isinstance(h, logging.FileHandler)]:
            log.removeHandler(handler)
            handler.close()
        file = logging.FileHandler(path)
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        log.addHandler(file)


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
    def __init__(self, folder: Path, first_epoch: int):
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides what a killed run wrote beyond its last checkpoint
        self.writer = SummaryWriter(str(folder), purge_step=first_epoch if first_epoch > 1 else None, flush_secs=10)

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, epoch)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _TensorboardLoggerWriter:
    def __init__(self, folder: Path):
        # the package's generated code predates protobuf 4; only the pure-Python implementation still reads it
        os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"
        from tensorboard_logger import Logger

        self.logger = Logger(logdir=str(folder), flush_secs=2)

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        for tag, value in values.items():
            self.logger.log_value(tag, value, epoch)

    def close(self) -> None:
        return None


def event_writer(backend: str, folder: Path, first_epoch: int) -> Writer:
    """backend: tensorboard, tensorboard_logger or none. first_epoch: where this process starts."""
    package = {"tensorboard": "tensorboard", "tensorboard_logger": "tensorboard_logger"}.get(backend)
    if package is None:
        return _NoWriter()
    try:
        if backend == "tensorboard_logger":
            return _TensorboardLoggerWriter(folder)
        return _TensorboardWriter(folder, first_epoch)
    except ImportError as error:
        raise UserError(
            f"--tb_backend {backend} needs the package {package} (pip install {package}), "
            f"or pass --tb_backend none ({error})"
        ) from error


class ProgressLine:
    """Live bar on a terminal; elsewhere a line every print_freq steps, at most one in ten seconds.

    Reading the meter makes the host wait for the device, hence the limit.
    """

    def __init__(self, epoch: int, epochs: int, steps: int, batch_size: int, print_freq: int, start_step: int = 0):
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
        if sys.stderr.isatty():
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
        wanted = self.bar is not None or (step + 1) % self.print_freq == 0
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
            log.info("Epoch: [%d][%d/%d]\t%s", self.epoch, step + 1, self.steps, text)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, s = divmod(int(seconds), 60)
    h, m = divmod(minutes, 60)
    return f"{h}:{m:02d}:{s:02d}" if h else f"{m}:{s:02d}"
