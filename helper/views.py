"""Evaluation of clips seen several times: averages over views, and mean class accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from helper import distributed
from helper.metrics import Meter, of_all_processes
from helper.protocols import Loader, UserError


def average_views(logits: Tensor, views: int, how: str) -> Tensor:
    """[B * V, K] -> [B, K]. prob: log of the mean of the probabilities; score: mean of the logits."""
    if views == 1:
        return logits
    split = logits.unflatten(0, (-1, views))
    return split.softmax(2).mean(1).log() if how == "prob" else split.mean(1)


def mean_class_accuracy(confusion: Tensor) -> float:
    """Percent. confusion: [K, K] counts, rows true and columns predicted. Mean of the recall over the classes that
    occur on either side, so a class that is only ever predicted counts 0 (the published metric)."""
    counts = confusion.double()
    true, predicted = counts.sum(1), counts.sum(0)
    recall = counts.diagonal() / true.clamp_min(1)
    return 100 * recall[(true + predicted) > 0].mean().item()


@torch.no_grad()
def evaluate_views(
    predict: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    loader: Loader,
    device: torch.device,
    num_classes: int,
    how: str,
) -> dict[str, dict[str, float]]:
    """Readout name -> loss, acc, acc_top5, acc_mean_class (percent) and samples, of predictions averaged over the views
    of a sample, over the loaders of all processes, each with a share of its own."""
    meters: dict[str, Meter] = {}
    confusions: dict[str, Tensor] = {}
    for i, batch in enumerate(loader):
        for name, readout in predict(batch.inputs).items():
            logits = average_views(readout.float(), batch.views, how)
            meter = meters.setdefault(name, Meter(device))
            meter.update(F.cross_entropy(logits, batch.target), logits, batch.target, {}, i)
            pairs = torch.bincount(batch.target * num_classes + logits.argmax(1), minlength=num_classes * num_classes)
            confusions[name] = confusions[name] + pairs if name in confusions else pairs
    meters = of_all_processes(meters, device)
    shares = distributed.gather({name: pairs.cpu() for name, pairs in confusions.items()})
    confusions = {name: torch.stack([share[name] for share in shares if name in share]).sum(0) for name in meters}
    if not any(meter.count for meter in meters.values()):
        raise UserError("not one test sample could be read")
    return {
        name: meter.read()[0]
        | {
            "acc_mean_class": mean_class_accuracy(confusions[name].view(num_classes, num_classes)),
            "samples": meter.count,
        }
        for name, meter in meters.items()
    }
