"""The progress line of an epoch."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.log import clock, log


@dataclass
class ProgressLine:
    """A bar on a terminal; elsewhere a line every print_freq steps, at most one in ten seconds.

    Reading the meter makes the host wait for the device, hence the limit. shown: whether to print at all.
    """

    epoch: int
    epochs: int
    steps: int
    batch_size: int
    print_freq: int
    start_step: int = 0
    logger: logging.Logger = log
    shown: bool = True

    def __post_init__(self) -> None:
        self.started = self.read_at = time.monotonic()
        self.bar: Any = None
        if self.shown and sys.stderr.isatty():
            from tqdm import tqdm

            title, total, done = f"Epoch {self.epoch}/{self.epochs}", self.steps, self.start_step
            self.bar = tqdm(total=total, initial=done, desc=title, unit="step", leave=False, mininterval=0.5)

    def due(self, step: int) -> bool:
        """Advance the bar; returns whether this step should read the meter."""
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
        total = self.steps * self.epochs * elapsed / done  # training only, at the speed of this epoch
        accuracy = f"Acc@1 {means['acc']:.2f}, " if "acc" in means else ""
        text = f"{rate:.0f} img/s, loss {means['loss']:.4f}, {accuracy}"
        text += f"left {clock(left)} of {clock(total)}"
        if self.bar is not None:
            self.bar.set_postfix_str(text)
        else:
            self.logger.info("Epoch: [%d][%d/%d]\t%s", self.epoch, step + 1, self.steps, text)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
