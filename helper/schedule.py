"""Learning-rate schedules: epoch (1-based) -> learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from helper.protocols import UserError


@dataclass(frozen=True)
class StepDecay:
    """lr * rate^(number of decay epochs that have passed); with 150 in `epochs`, epoch 151 is the first reduced one."""

    lr: float
    epochs: Sequence[int]
    rate: float

    def __call__(self, epoch: int) -> float:
        return self.lr * self.rate ** sum(epoch > e for e in self.epochs)


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
