"""The order of an epoch: which samples a process reads in which batch; and the seeds of what is drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.protocols import Batch, Batching, Loader, UserError


def seed_for(purpose: str, *numbers: int) -> int:
    """A seed for one purpose in one place of the training, such as (seed, epoch)."""
    text = " ".join(map(str, (purpose, *numbers)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator inside the block and restore its state afterwards.

    torch.manual_seed() would also reseed all accelerators, and keep a stack trace until one of them is used.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def generator(purpose: str, seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(purpose, seed, epoch))


class InOrder(Loader):
    """Test samples in order. make: positions -> their batch."""

    def __init__(self, parts: Sequence[range], make: Callable[[range], Batch]):
        super().__init__(len(parts))
        self.parts, self.make = parts, make

    def batch(self, step: int) -> Batch:
        return self.make(self.parts[step])


def in_order(count: int, batch_size: int, rank: int, world_size: int) -> list[range]:
    """The positions of every batch of a test set; every rank has its own exact slice, which may be empty."""
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; give at least 1")
    assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
    mine = range(count)[count * rank // world_size : count * (rank + 1) // world_size]
    return [mine[at : at + batch_size] for at in range(0, len(mine), batch_size)]


Place = tuple[int, Any]  # position in the split, what the view of the sample depends on


@dataclass(frozen=True)
class Plan:
    """The samples of every batch of an epoch, in all processes; they depend only on (seed, epoch).

    Global batch k is order[k*B : (k+1)*B], cut into world_size equal slices. If world_size does not divide a short last
    batch, the remainder is left out (fewer than world_size samples, others in every epoch); if a process would get no
    sample, the whole batch is left out. repeats: every sample in an epoch occurs this often, `count` in all (repeated
    augmentation, Hoffer et al., CVPR 2020). what: the word for a sample in messages. UserError if batch_size exceeds
    count or is not a multiple of world_size.
    """

    count: int
    batching: Batching
    repeats: int = 1
    what: str = "images"

    def __post_init__(self) -> None:
        size, ranks = self.batching.batch_size, self.batching.world_size
        assert 0 <= self.batching.rank < ranks, f"rank {self.batching.rank} of {ranks}"
        if not 1 <= size <= self.count:
            raise UserError(
                f"batch_size is {size}, but the training set has {self.count} {self.what}; "
                f"give a batch_size between 1 and {self.count}"
            )
        if size % ranks:
            raise UserError(f"batch_size {size} cannot be divided among {ranks} processes; give a multiple of {ranks}")

    @property
    def steps(self) -> int:
        whole, left = divmod(self.count, self.batching.batch_size)
        return whole + (0 if self.batching.drop_last or left < self.batching.world_size else 1)

    def order(self, epoch: int) -> Tensor:
        """[count] int64: the sample at every position of the epoch."""
        order = torch.randperm(self.count, generator=generator("order", self.batching.seed, epoch))
        if self.repeats > 1:
            order = order[: -(-self.count // self.repeats)].repeat_interleave(self.repeats)[: self.count]
        return order

    def places_of(self, step: int) -> range:
        """The positions in the epoch of this process's part of a batch."""
        whole, rank = self.batching.batch_size, self.batching.rank
        first = step * whole
        size = min(whole, self.count - first) // self.batching.world_size
        return range(first + rank * size, first + (rank + 1) * size)

    def places(self, epoch: int, start_step: int) -> list[list[Place]]:
        """This process's (position, seed of the view) in every batch from start_step on."""
        seeds = torch.randint(2**62, (self.count,), generator=generator("view", self.batching.seed, epoch)).tolist()
        order = self.order(epoch).tolist()
        return [[(order[at], seeds[at]) for at in self.places_of(step)] for step in range(start_step, self.steps)]
