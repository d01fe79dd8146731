"""Memory banks of CRD (Tian et al., ICLR 2020, section 3), and contrast indices drawn on the device.

Shape letters: B anchors, N training samples, D embedding width, K negatives per anchor.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.protocols import UserError

DENSE_LIMIT = 200_000  # samples up to which [B, N] intermediates are affordable
CHUNK_BYTES = 2**25  # of gathered bank rows beyond that


def gathered(x: Tensor) -> Tensor:
    """[B, ...] of this process -> [R*B, ...] of all R, in rank order. All must have the same B."""
    if not (dist.is_available() and dist.is_initialized()):
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


class ContrastSampler(nn.Module):
    """Draws [B, 1 + K] positions in the training set; column 0 is the positive, the others are of other classes.

    labels: [N] int64. mode: the positive is the anchor itself ("exact") or any sample of its class ("relax").
    Negatives are uniform over the other classes. They are distinct within an anchor if N <= DENSE_LIMIT and every class
    has at least K samples outside it; otherwise they may repeat, as in the published ImageNet loader.
    """

    labels: Tensor
    order: Tensor
    start: Tensor
    count: Tensor

    def __init__(self, labels: Tensor, num_negatives: int, mode: Literal["exact", "relax"], rng: torch.Generator):
        super().__init__()
        count = torch.bincount(labels)
        if int((count > 0).sum()) < 2:
            raise UserError(
                f"crd draws negatives from other classes, but all {len(labels)} training samples belong to "
                "one class; use data of at least two classes"
            )
        if num_negatives < 1:
            raise UserError(f"--nce_k {num_negatives} gives crd no negatives; use at least 1")
        self.num_negatives, self.mode, self.rng = num_negatives, mode, rng
        fewest_others = len(labels) - int(count.max())
        self.distinct = len(labels) <= DENSE_LIMIT and num_negatives <= fewest_others
        # derived from the data set, so not part of a checkpoint
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("order", labels.argsort(stable=True), persistent=False)  # [N], class by class
        self.register_buffer("start", count.cumsum(0) - count, persistent=False)  # of every class in `order`
        self.register_buffer("count", count, persistent=False)

    def forward(self, index: Tensor) -> Tensor:
        """[B] positions of the anchors -> [B, 1 + K]."""
        positive = index[:, None] if self.mode == "exact" else self._same_class(index)
        negatives = self._distinct_others(index) if self.distinct else self._others(index)
        return torch.cat([positive, negatives], 1)

    def _below(self, bound: Tensor, num: int) -> Tensor:
        """[B] exclusive bounds -> [B, num] uniform integers; the remainder's bias is below N / 2^62."""
        return torch.randint(2**62, (len(bound), num), generator=self.rng, device=bound.device) % bound[:, None]

    def _same_class(self, index: Tensor) -> Tensor:
        label = self.labels[index]
        return self.order[self.start[label][:, None] + self._below(self.count[label], 1)]

    def _distinct_others(self, index: Tensor) -> Tensor:
        """The K largest of N random keys, the anchor's class excluded."""
        keys = torch.rand(len(index), len(self.labels), generator=self.rng, device=index.device)
        keys.masked_fill_(self.labels == self.labels[index][:, None], -1.0)
        return keys.topk(self.num_negatives, dim=1, sorted=False).indices

    def _others(self, index: Tensor) -> Tensor:
        """Positions in `order`, the anchor's class excluded."""
        label = self.labels[index]
        start, count = self.start[label][:, None], self.count[label][:, None]
        place = self._below(len(self.labels) - count[:, 0], self.num_negatives)
        return self.order[place + count * (place >= start)]


def bank_scores(v: Tensor, bank: Tensor, positions: Tensor) -> Tensor:
    """Inner products of v [B, D] with the rows of bank [N, D] at positions [B, P] -> [B, P].

    One matmul and a gather: the same values as gathering rows, without [B, P, D]. For a bank too large for
    [B, N], rows are gathered in chunks, and again in the backward pass.
    """
    if len(bank) <= DENSE_LIMIT:
        return (v @ bank.T).gather(1, positions)

    def chunk(v: Tensor, positions: Tensor) -> Tensor:
        return torch.einsum("bd,bpd->bp", v, bank[positions])

    size = max(1, CHUNK_BYTES // (v.numel() * v.element_size()))
    return torch.cat([checkpoint(chunk, v, part, use_reentrant=False) for part in positions.split(size, 1)], 1)


class MemoryBank(nn.Module):
    """One embedding per training sample for the student (memory_v1) and the teacher (memory_v2), each [N, D].

    Initialised uniformly in +-1 / sqrt(D / 3), as published: unit length on average.
    """

    memory_v1: Tensor
    memory_v2: Tensor

    def __init__(self, num_samples: int, width: int, momentum: float, init_rng: torch.Generator):
        super().__init__()
        self.momentum = momentum
        bound = 1 / math.sqrt(width / 3)
        for name in ("memory_v1", "memory_v2"):
            self.register_buffer(name, torch.empty(num_samples, width).uniform_(-bound, bound, generator=init_rng))

    def forward(self, v_s: Tensor, v_t: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the embeddings [B, D] of each network against the bank of the other: two [B, P]."""
        return bank_scores(v_s, self.memory_v2, positions), bank_scores(v_t, self.memory_v1, positions)

    @torch.no_grad()
    def update(self, index: Tensor, v_s: Tensor, v_t: Tensor) -> None:
        """Move the rows at index [B] towards the embeddings [B, D] and renormalise, identically in all processes."""
        index, v_s, v_t = gathered(index), gathered(v_s), gathered(v_t)
        # if a sample occurs twice, every copy writes the value of the last one, so the order of writes does not matter
        place = torch.arange(len(index), device=index.device)
        last = torch.where(index[:, None] == index, place, -1).amax(1)
        for bank, v in ((self.memory_v1, v_s), (self.memory_v2, v_t)):
            rows = self.momentum * bank[index] + (1 - self.momentum) * v[last].to(bank.dtype)
            bank[index] = F.normalize(rows)
