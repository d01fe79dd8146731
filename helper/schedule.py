"""Learning-rate schedules: epoch (1-based) -> learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from helper.protocols import UserError


@dataclass(frozen=True)
class StepDecay:
    """lr * rate^(number of decay epochs that have passed); with 150 in `epochs`, epoch 151 is the first reduced one.

    warmup: epochs over which the rate rises linearly from a tenth, epoch by epoch.
    """

    lr: float
    epochs: Sequence[int]
    rate: float
    warmup: int = 0

    def __call__(self, epoch: int) -> float:
        lr = self.lr * self.rate ** sum(epoch > e for e in self.epochs)
        return lr * (0.1 + 0.9 * (epoch - 1) / self.warmup) if epoch <= self.warmup else lr


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
