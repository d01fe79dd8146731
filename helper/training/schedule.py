"""Learning-rate schedules: epoch (1-based) -> learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.option import RESULT, Around, Config, at_least, option, positive
from core.protocols import UserError

Schedule = Callable[[int], float]


def _readable(flag: str, text: str) -> None:
    parse_decay_epochs(text)


@dataclass(frozen=True)
class ScheduleConfig(Config):
    heading = "schedule"

    epochs: int = option(240, "epochs to train (default 240; depends on the data set)", check=at_least(1), role=RESULT)
    learning_rate: float = option(
        0.05,
        "initial learning rate (default 0.05; depends on the data set; 0.01 for mobile and shuffle nets)",
        short="--lr",
        check=positive,
        role=RESULT,
    )
    lr_decay_epochs: str = option(
        "150,180,210",
        "epochs after which the learning rate is multiplied by --lr_decay_rate (default 150,180,210; depends on the "
        "data set)",
        check=_readable,
        role=RESULT,
        metavar="EPOCHS",
    )
    lr_decay_rate: float = option(0.1, "factor of each learning-rate drop", check=positive, role=RESULT)
    schedule: str = option("step", "learning-rate schedule", choices=("step", "cosine"), role=RESULT)
    init_epochs: int = option(
        30, "epochs of the first stage, for methods that have one", check=at_least(1), role=RESULT
    )
    lr_min: float = option(0.0, "final learning rate of the cosine schedule", role=RESULT)
    warmup_epochs: int = option(0, "epochs of linear warm-up", role=RESULT)
    warmup_start: float = option(
        0.01, "initial learning rate of the warm-up, as a share of --learning_rate", role=RESULT
    )

    def idle(self, around: Around) -> dict[str, str]:
        return {} if around.stages > 1 else {"init_epochs": f"--distill {around.distill} has no first stage"}


@dataclass(frozen=True)
class StepDecay:
    """lr * rate^(number of decay epochs passed); with 150 in `epochs`, epoch 151 is the first with a lower rate."""

    lr: float
    epochs: Sequence[int]
    rate: float

    def __call__(self, epoch: int) -> float:
        return self.lr * self.rate ** sum(epoch > e for e in self.epochs)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from lr in the first epoch to `lowest` in the epoch after the last
    (Loshchilov & Hutter, ICLR 2017, eq. 5, without restarts; torch's CosineAnnealingLR stepped once an epoch)."""

    lr: float
    epochs: int
    lowest: float = 0.0

    def __call__(self, epoch: int) -> float:
        return self.lowest + (self.lr - self.lowest) * (1 + math.cos(math.pi * (epoch - 1) / self.epochs)) / 2


@dataclass(frozen=True)
class WarmUp:
    """`start` times the rate in the first epoch, rising linearly to the full rate in epoch `epochs` + 1 (torch's
    LinearLR).

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


def make_schedule(cfg: ScheduleConfig) -> Schedule:
    """UserError if the warm-up takes the whole run."""
    lr, warmup = cfg.learning_rate, cfg.warmup_epochs
    if not 0 <= warmup < cfg.epochs and warmup:
        raise UserError(f"--warmup_epochs {warmup} must be at least 0 and below --epochs {cfg.epochs}")
    if not 0 < cfg.warmup_start <= 1 or not 0 <= cfg.lr_min <= lr:
        raise UserError(
            f"--warmup_start {cfg.warmup_start} must be in (0, 1], and --lr_min {cfg.lr_min} from 0 to "
            f"--learning_rate {lr}"
        )
    then: Schedule = (
        Cosine(lr, cfg.epochs - warmup, cfg.lr_min)
        if cfg.schedule == "cosine"
        else StepDecay(lr, parse_decay_epochs(cfg.lr_decay_epochs), cfg.lr_decay_rate)
    )
    return WarmUp(then, warmup, cfg.warmup_start) if warmup else then


def parse_decay_epochs(text: str) -> tuple[int, ...]:
    """'150,180,210' -> (150, 180, 210); an empty text: no decay."""
    try:
        epochs = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UserError(
            f"--lr_decay_epochs '{text}' is not a comma-separated list of epochs, such as 150,180,210"
        ) from None
    if list(epochs) != sorted(set(epochs)) or any(e < 1 for e in epochs):
        raise UserError(f"--lr_decay_epochs '{text}' must be positive and increasing")
    return epochs
