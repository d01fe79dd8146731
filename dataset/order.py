"""The order of an epoch: which samples a process reads in which batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from core.protocols import Batch, UserError


def generator(purpose: str, seed: int, epoch: int) -> torch.Generator:
    digest = hashlib.blake2b(f"{purpose} {seed} {epoch}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class PositionedLoader:
    """Steps through an epoch's batches; iteration starts where set_epoch said.

    After each batch `state_dict` points at the next one, so that a run stopped in mid-epoch continues with it.
    """

    def __init__(self, steps: int):
        self.steps, self.epoch, self.step = steps, 1, 0
        self._fresh = True

    def batches(self, start: int) -> Iterator[Batch]:
        """Those of the epoch from step `start` on."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Steps of a whole epoch, the same on every rank, whatever step the next iteration starts at."""
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        start = self.step if self._fresh else 0
        self._fresh = False
        for step, batch in enumerate(self.batches(start), start):
            self.step = step + 1
            yield batch

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        assert 0 <= start_step <= self.steps, f"start_step {start_step} of {self.steps}"
        self.epoch, self.step, self._fresh = epoch, start_step, True

    def identity(self) -> dict[str, int]:
        """What must agree for a position in an epoch to mean the same batch."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "step": self.step, **self.identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at the recorded batch; UserError if it was recorded with other data, seed or batch size."""
        for key, value in self.identity().items():
            if state[key] != value:
                raise UserError(
                    f"the checkpoint was written with {key} {state[key]}, this run has {value}; "
                    f"resume with {key} {state[key]} or start another run"
                )
        self.set_epoch(state["epoch"], state["step"])


class ResidentLoader(PositionedLoader):
    """Batches that are rendered on the device."""

    def batch(self, step: int) -> Batch:
        raise NotImplementedError

    def batches(self, start: int) -> Iterator[Batch]:
        return (self.batch(step) for step in range(start, self.steps))


Place = tuple[int, int]  # position in the split, seed of the augmentation


class Plan:
    """Which samples every batch of an epoch holds, in all processes: a function of (seed, epoch) and nothing else.

    Global batch k is order[k*B : (k+1)*B], cut into world_size equal slices (a short last batch leaves out what
    world_size does not divide). repeats: every sample that occurs does so that often, N in all (repeated augmentation,
    Hoffer et al., CVPR 2020). The seed of a view depends on (seed, epoch, place in the epoch).
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, drop_last: bool, rank: int, world_size: int, repeats: int = 1
    ):
        if not 1 <= batch_size <= count:
            raise UserError(
                f"batch_size is {batch_size}, but the training set has {count} images; "
                f"give a batch_size between 1 and {count}"
            )
        if batch_size % world_size:
            raise UserError(
                f"batch_size {batch_size} cannot be divided among {world_size} processes; "
                f"give a multiple of {world_size}"
            )
        self.count, self.batch_size, self.seed, self.repeats = count, batch_size, seed, repeats
        self.rank, self.world_size = rank, world_size
        whole, left = divmod(count, batch_size)
        self.steps = whole + (0 if drop_last or left < world_size else 1)

    def places(self, epoch: int, start_step: int) -> list[list[Place]]:
        """This process's (position, seed) of every batch from start_step on."""
        order = torch.randperm(self.count, generator=generator("order", self.seed, epoch))
        if self.repeats > 1:
            order = order[: -(-self.count // self.repeats)].repeat_interleave(self.repeats)[: self.count]
        seeds = torch.randint(2**62, (self.count,), generator=generator("view", self.seed, epoch))
        batches = []
        for step in range(start_step, self.steps):
            first = step * self.batch_size
            size = min(self.batch_size, self.count - first) // self.world_size
            mine = slice(first + self.rank * size, first + (self.rank + 1) * size)
            batches.append(list(zip(order[mine].tolist(), seeds[mine].tolist(), strict=True)))
        return batches
