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
    """Length of the training and its learning rates."""

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


def make_schedule(cfg: ScheduleConfig) -> Schedule:
    """UserError if the warm-up takes the whole run.

    cosine: half a cosine from the full rate to lr_min in the epoch after the last (Loshchilov & Hutter, ICLR 2017, eq.
    5, without restarts; torch's CosineAnnealingLR stepped once an epoch). Warm-up: warmup_start times the rate in the
    first epoch, rising linearly to the full rate in epoch warmup_epochs + 1 (torch's LinearLR). A cosine begins after
    it, as in torchvision's recipes; decay epochs count from the start of the run.
    """
    lr, warmup, lowest = cfg.learning_rate, cfg.warmup_epochs, cfg.lr_min
    if not 0 <= warmup < cfg.epochs and warmup:
        raise UserError(f"--warmup_epochs {warmup} must be at least 0 and below --epochs {cfg.epochs}")
    if not 0 < cfg.warmup_start <= 1 or not 0 <= lowest <= lr:
        raise UserError(
            f"--warmup_start {cfg.warmup_start} must be in (0, 1], and --lr_min {lowest} from 0 to --learning_rate {lr}"
        )
    step = StepDecay(lr, parse_decay_epochs(cfg.lr_decay_epochs), cfg.lr_decay_rate)

    def cosine(epoch: int) -> float:
        angle = math.pi * (max(epoch - warmup, 1) - 1) / (cfg.epochs - warmup)
        return lowest + (lr - lowest) * (1 + math.cos(angle)) / 2

    def rate(epoch: int) -> float:
        share = cfg.warmup_start + (1 - cfg.warmup_start) * (epoch - 1) / warmup if epoch <= warmup else 1.0
        full = cosine if cfg.schedule == "cosine" else step
        return full(1 if epoch <= warmup else epoch) * share

    return rate


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
