"""The evaluation loop, and the average over views of a clip."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core import machine
from core.log import progress
from core.protocols import Batch, DataSet, Loader, ModelSpec, UserError
from helper.evaluation.metrics import Meter, confusion_matrix, of_all_processes
from helper.machine import distributed


def average_views(logits: Tensor, views: int, how: str) -> Tensor:
    """[B * V, K] -> [B, K]. prob: log of the mean of the probabilities; score: mean of the logits."""
    if views == 1:
        return logits
    split = logits.unflatten(0, (-1, views))
    return split.softmax(2).mean(1).log() if how == "prob" else split.mean(1)


def mean_class_accuracy(confusion: Tensor) -> float:
    """Percent. confusion: [K, K] counts, rows true and columns predicted. Mean recall over the classes that occur
    as labels or predictions; a class that is only predicted counts 0 (the published metric)."""
    counts = confusion.double()
    true, predicted = counts.sum(1), counts.sum(0)
    recall = counts.diagonal() / true.clamp_min(1)
    return 100 * recall[(true + predicted) > 0].mean().item()


Watch = Callable[[Batch, Mapping[str, Tensor]], None]


@torch.no_grad()
def evaluate(
    predict: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    loader: Iterable[Batch],
    device: torch.device,
    autocast: torch.dtype | None = None,
    how: str = "prob",
    watch: Watch | None = None,
) -> dict[str, dict[str, float]]:
    """Readout name -> loss, acc, acc_top5 (percent) of predictions averaged over the views of a sample, over the
    loaders of all processes, each with its own share.

    autocast: dtype of the forward pass; None leaves it to `predict`. watch: called with every batch and its averaged
    logits, by readout. UserError without a sample.
    """
    meters: dict[str, Meter] = {}
    for i, batch in enumerate(progress(loader, "evaluation")):
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            readouts = predict(batch.inputs)
        averaged = {k: average_views(v.float(), batch.views, how) for k, v in readouts.items()}
        if watch is not None:
            watch(batch, averaged)
        for name, logits in averaged.items():
            meter = meters.setdefault(name, Meter(device))
            meter.update(F.cross_entropy(logits, batch.target), logits, batch.target, {}, i)
    found = {name: meter.read()[0] for name, meter in of_all_processes(meters, device).items()}
    if not found:  # --skip_corrupt has left out all of them
        raise UserError("no test sample could be read: check the data folder")
    return found


def evaluate_views(
    predict: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    loader: Iterable[Batch],
    device: torch.device,
    num_classes: int,
    how: str,
    watch: Watch | None = None,
) -> dict[str, dict[str, float]]:
    """evaluate(), with acc_mean_class (percent) and the number of samples of every readout."""
    confusions: dict[str, Tensor] = {}

    def count(batch: Batch, averaged: Mapping[str, Tensor]) -> None:
        if watch is not None:
            watch(batch, averaged)
        for name, logits in averaged.items():
            pairs = confusion_matrix(batch.target, logits.argmax(1), num_classes)
            confusions[name] = confusions[name] + pairs if name in confusions else pairs

    found = evaluate(predict, loader, device, how=how, watch=count)
    shares = distributed.gather({name: pairs.cpu() for name, pairs in confusions.items()})
    for name, means in found.items():
        whole = torch.stack([share[name] for share in shares if name in share]).sum(0)
        means |= {"acc_mean_class": mean_class_accuracy(whole), "samples": int(whole.sum())}
    return found


def eval_batch(device: torch.device) -> int:
    """Images per forward pass in evaluation: on a CPU a number that suits its caches, elsewhere enough to fill the
    device."""
    return 125 if device.type == "cpu" else 1000


@dataclass(frozen=True)
class TestBatches:
    """This process's share of the test set; in a trial run, of its beginning. first: samples of a shortened evaluation
    over all processes; None: the whole set."""

    loader: Loader
    count: int
    first: int | None = None

    def __iter__(self) -> Iterator[Batch]:
        return itertools.islice(iter(self.loader), self.count)

    def __len__(self) -> int:
        return self.count


LEAST = 1000  # smallest number of samples of a shortened evaluation


def open_test(data: DataSet, device: torch.device, trial: int | None = None) -> TestBatches:
    """trial: samples of a training epoch cut by --max_steps, None if it is whole; evaluation uses as many, but at least
    LEAST."""
    ranks, size = {"rank": machine.rank(), "world_size": distributed.world_size()}, eval_batch(device)
    loader = data.test_loader(size, device=device, **ranks)
    count = len(loader) if trial is None else -(-max(LEAST, trial) // (size * ranks["world_size"]))
    if count >= len(loader):
        return TestBatches(loader, len(loader))
    return TestBatches(loader, count, count * size * ranks["world_size"])


def near_chance(
    acc: float, num_classes: int, spec: ModelSpec, shape: Sequence[int], flags: Sequence[str]
) -> str | None:
    """A warning with likely causes if a network is about as good as guessing (twice chance; less for few classes).

    flags: those that set mean, std and the order of classes.
    """
    chance = 100 / num_classes
    if acc > chance + min(chance, (100 - chance) / 4):
        return None
    pixels = (
        "" if spec.mean is None else f" ({flags[0]}, {flags[1]}; used: mean {_few(spec.mean)}, std {_few(spec.std)})"
    )
    size = "x".join(map(str, shape))
    return (
        f"WARNING: {spec.name} reaches {acc:.2f} %; guessing gives {chance:.2f} %. Likely causes: another "
        "normalisation "
        f"than in training{pixels}; another order of classes ({flags[2]}); inputs of another size than {size}"
    )


def _few(values: Sequence[float] | None) -> str:
    return " ".join(f"{v:.4g}" for v in values or ())
