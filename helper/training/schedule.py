"""Learning-rate schedules: epoch (1-based) -> learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.protocols import UserError

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class StepDecay:
    """lr * rate^(number of decay epochs that have passed); with 150 in `epochs`, epoch 151 is the first reduced one."""

    lr: float
    epochs: Sequence[int]
    rate: float

    def __call__(self, epoch: int) -> float:
        return self.lr * self.rate ** sum(epoch > e for e in self.epochs)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from lr in the first epoch towards `lowest`, which the epoch after the last would have
    (Loshchilov & Hutter, ICLR 2017, eq. 5, without restarts; torch's CosineAnnealingLR stepped once an epoch)."""

    lr: float
    epochs: int
    lowest: float = 0.0

    def __call__(self, epoch: int) -> float:
        return self.lowest + (self.lr - self.lowest) * (1 + math.cos(math.pi * (epoch - 1) / self.epochs)) / 2


@dataclass(frozen=True)
class WarmUp:
    """`start` times the rate in the first epoch, then evenly up to all of it in epoch `epochs` + 1 (torch's LinearLR).

    A cosine begins after the warm-up, as in torchvision's recipes; decay epochs count from the start of the run.
    """

    then: Schedule
    epochs: int
    start: float

    def __call__(self, epoch: int) -> float:
        if epoch > self.epochs:
            return self.then(epoch - self.epochs if isinstance(self.then, Cosine) else epoch)
        return self.then(1) * (self.start + (1 - self.start) * (epoch - 1) / self.epochs)


def undiminished(schedule: Callable[[int], float]) -> float:
    """The rate before any decay and without warm-up."""
    return schedule.then(1) if isinstance(schedule, WarmUp) else schedule(1)


def make_schedule(
    kind: str, lr: float, epochs: int, decay_epochs: str, decay_rate: float, warmup: int, start: float, lowest: float
) -> Schedule:
    """kind: step or cosine. UserError where warm-up takes the whole run."""
    if not 0 <= warmup < epochs and warmup:
        raise UserError(f"--warmup_epochs {warmup} must be at least 0 and below --epochs {epochs}")
    if not 0 < start <= 1 or not 0 <= lowest <= lr:
        raise UserError(
            f"--warmup_start {start} must lie in (0, 1] and --lr_min {lowest} between 0 and --learning_rate {lr}"
        )
    then: Schedule = (
        Cosine(lr, epochs - warmup, lowest)
        if kind == "cosine"
        else StepDecay(lr, parse_decay_epochs(decay_epochs), decay_rate)
    )
    return WarmUp(then, warmup, start) if warmup else then


def parse_decay_epochs(text: str) -> tuple[int, ...]:
    """'150,180,210' -> (150, 180, 210); an empty text means no decay."""
    try:
        epochs = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UserError(
            f"--lr_decay_epochs '{text}' is not a comma-separated list of epochs, such as 150,180,210"
        ) from None
    if list(epochs) != sorted(set(epochs)) or any(e < 1 for e in epochs):
        raise UserError(f"--lr_decay_epochs '{text}' must be positive and increasing")
    return epochs
