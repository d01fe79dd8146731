"""Running means, kept on the device and read once per epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from helper.machine import distributed


class Meter:
    """Sample-weighted means of loss, top-1, top-5 and named terms, and the first step whose loss was not finite.

    update() never waits for the device; read() does, once.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.names: tuple[str, ...] = ()
        self.sums = torch.zeros(0, dtype=torch.float64, device=device)
        self.weights: list[int] = []
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self.count = 0

    def _add(self, totals: Mapping[str, Tensor], weights: Mapping[str, int]) -> None:
        for name in [v for v in totals if v not in self.names]:  # a term that appears late counts from its first step
            self.names += (name,)
            self.sums = F.pad(self.sums, (0, 1))
            self.weights.append(0)
        zero = torch.zeros((), device=self.device)
        if self.names:
            self.sums += torch.stack([totals.get(name, zero).to(torch.float64) for name in self.names])
        self.weights = [w + weights.get(name, 0) for name, w in zip(self.names, self.weights, strict=True)]

    @torch.no_grad()
    def update(
        self, loss: Tensor, logits: Tensor, target: Tensor, terms: Mapping[str, Tensor], step: int, unlabelled: int = 0
    ) -> None:
        """loss and terms: scalars, means over B. logits: [B, K]. target: [B]. unlabelled: size of a batch without any
        label, whose logits and targets are empty; it has no accuracy."""
        n = unlabelled or len(target)
        # float64 counts right answers exactly: equal epochs must not differ by rounding
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]  # [B, 5]
        totals = {} if unlabelled else {"acc": top[:, 0].sum() * 100, "acc_top5": top.any(1).sum() * 100}
        totals |= {name: value.to(torch.float64) * n for name, value in {"loss": loss, **terms}.items()}
        self._add(totals, dict.fromkeys(totals, n))
        bad = ~torch.isfinite(loss) & (self.first_bad < 0)
        self.first_bad = torch.where(bad, step, self.first_bad)
        self.count += n

    def read(self) -> tuple[dict[str, float], int | None]:
        """Means by name, and the first step with a loss that was not finite, if any."""
        sums, bad = self.sums.tolist(), int(self.first_bad)
        means = {name: s / w for name, s, w in zip(self.names, sums, self.weights, strict=True)}
        return {k: means[k] for k in sorted(means)}, None if bad < 0 else bad

    def merged(self) -> Meter:
        """The meter over the samples of all processes. All processes must call it."""
        return of_all_processes({"": self}, self.device)[""]

    def state_dict(self) -> dict[str, Any]:
        """On the host."""
        return {
            "names": list(self.names),
            "sums": self.sums.cpu(),
            "weights": list(self.weights),
            "first_bad": self.first_bad.cpu(),
            "count": self.count,
        }

    def add(self, state: Mapping[str, Any]) -> None:
        """Count the samples of another meter's state, too."""
        totals, weights = (zip(state["names"], state[k], strict=True) for k in ("sums", "weights"))
        self._add({name: total.to(self.device) for name, total in totals}, dict(weights))
        bad = [step for step in (int(self.first_bad), int(state["first_bad"])) if step >= 0]
        self.first_bad.fill_(min(bad, default=-1))
        self.count += state["count"]


def merge(states: Iterable[Mapping[str, Any]], device: torch.device) -> Meter:
    """One meter that joins the states of several."""
    whole = Meter(device)
    for state in states:
        whole.add(state)
    return whole


def of_all_processes(meters: Mapping[str, Meter], device: torch.device) -> dict[str, Meter]:
    """Each meter over the samples of all processes; a process without samples has no meters. All must call it."""
    if distributed.world_size() == 1:
        return dict(meters)
    shares = distributed.gather({name: meter.state_dict() for name, meter in meters.items()})
    names = dict.fromkeys(name for share in shares for name in share)
    return {name: merge((share[name] for share in shares if name in share), device) for name in names}


def confusion_matrix(labels: Tensor, predicted: Tensor, k: int) -> Tensor:
    """[K, K] counts, rows true and columns predicted."""
    return torch.bincount(labels * k + predicted, minlength=k * k).view(k, k)


def calibration(logits: Tensor, target: Tensor, bins: int = 15) -> tuple[float, Tensor]:
    """Expected calibration error (Guo et al., ICML 2017, eq. 3) and [bins, 3]: mean confidence, accuracy, share.

    logits [N, K], target [N]. Bins have equal width in (0, 1]; an empty one holds zeros.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    right = (predicted == target).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    count = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, torch.ones_like(right))
    sums = torch.zeros(bins, 2, dtype=torch.float64).index_add_(0, place, torch.stack([confidence, right], 1))
    means = sums / count.clamp(min=1)[:, None]
    share = count / len(target)
    error = (share * (means[:, 0] - means[:, 1]).abs()).sum()
    return float(error), torch.cat([means, share[:, None]], 1)
