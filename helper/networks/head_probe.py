"""A classifier for a teacher without one: fitted once to its frozen features of the training set, and saved.

Shape letters: N samples, D width of the feature, K classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.files import atomic_save, make_folder
from core.log import log, progress
from core.machine import free
from core.protocols import DataSet, UserError
from core.taps import TappedNet, probe
from helper.machine import distributed
from helper.machine.kernels import to_device
from helper.networks.checkpoint import load_file
from helper.networks.load import Network, classifiers_of, without_classifier

ITERATIONS, WEIGHT_DECAY = 200, 1e-3  # weight decay of the logistic regression
SCALES = 2.0 ** torch.arange(-12, 13)  # candidates for the scale of the distances to the class means
CALIBRATED = 10_000  # largest number of samples that choose the scale


def logistic(
    x: Tensor, y: Tensor, num_classes: int, iterations: int, weight_decay: float
) -> tuple[nn.Linear, Tensor, Tensor, int]:
    """Multinomial logistic regression by L-BFGS on all features [N, D], each standardised over the samples.

    Minimises mean cross-entropy + weight_decay / 2 * |W|^2: convex, so no seed and no schedule.
    Returns the layer for standardised features, their mean and standard deviation [D], and the number of iterations.
    """
    mean, std = x.mean(0), x.std(0, unbiased=False).clamp_min(1e-6)
    x = (x - mean) / std
    layer = nn.utils.skip_init(nn.Linear, x.shape[1], num_classes, device=x.device)  # a run's generator stays as it is
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=iterations, line_search_fn="strong_wolfe")

    evaluations = iter(progress(itertools.count(), "evaluations of L-BFGS"))

    def closure() -> Tensor:
        next(evaluations)
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(layer(x), y) + weight_decay / 2 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return layer, mean, std, int(optimizer.state[layer.weight]["n_iter"])


def fit_linear_head(x: Tensor, y: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Weight [K, D] and bias [K] of logistic() for raw features."""
    layer, mean, std, _ = logistic(x, y, num_classes, ITERATIONS, WEIGHT_DECAY)
    with torch.no_grad():
        weight = layer.weight / std
        return weight, layer.bias - weight @ mean


@torch.no_grad()
def means_head(x: Tensor, y: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Weight [K, D] and bias [K] of logits -scale * |x - mean of the class|^2, up to a constant per sample.

    The scale does not change the predicted class, only the confidence: the value of SCALES / mean squared norm with the
    lowest cross-entropy on at most CALIBRATED evenly spaced samples.
    """
    counts = torch.bincount(y, minlength=num_classes).clamp_min(1)
    means = torch.zeros(num_classes, x.shape[1], device=x.device).index_add_(0, y, x) / counts[:, None]
    some = slice(None, None, -(-len(x) // CALIBRATED))
    logits = 2 * x[some] @ means.T - means.square().sum(1)
    scales = SCALES.to(x.device) / (x - means[y]).square().sum(1).mean().clamp_min(1e-12)
    losses = torch.stack([F.cross_entropy(scale * logits, y[some]) for scale in scales])
    scale = scales[losses.argmin()]
    return 2 * scale * means, -scale * means.square().sum(1)


HEADS = {"linear": fit_linear_head, "means": means_head}


@torch.no_grad()
def features_of(net: TappedNet, data: DataSet, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pooled features [N, D] and labels [N] of one pass over the training set, with training augmentation."""
    side = probe(net, data.shapes)
    if len(side.shapes["pooled"]) != 1:
        raise UserError(
            f"the pooled feature of {net.spec.name} is {list(side.shapes['pooled'])}, not a vector, so --teacher_probe "
            "cannot fit a classifier to it: choose another teacher"
        )
    count, width = len(data.train_labels), side.shapes["pooled"][0]
    if (needed := 3 * 4 * count * width) > (left := free(device)):
        raise UserError(
            f"--teacher_probe needs {needed} bytes for {count} features of width {width}, {left} are free: pass "
            "--few_ratio, or a smaller teacher"
        )
    loader = data.train_loader(min(125 if device.type == "cpu" else 500, count), seed=0, device=device)
    loader.set_epoch(1)
    x: list[Tensor] = []
    y: list[Tensor] = []
    for batch in progress(loader, "features of the training set", len(loader)):
        x.append(net(batch.inputs)["pooled"].float())
        y.append(batch.target)
    return torch.cat(x), torch.cat(y)


def with_probe(
    network: Network, kind: str, data: DataSet, folder: Path, device: torch.device, *, keep: bool = True
) -> Network:
    """The network with a classifier for this data, read from `folder` if an earlier run has fitted it.

    kind: of HEADS. It replaces the network's own classifier. keep: write a newly fitted one to `folder`.
    """
    if len(classifiers_of(network.spec)) > 1:
        raise UserError(
            f"--teacher_probe fits one classifier, but {network.spec.name} has one for each of its two tokens: choose "
            "another teacher"
        )
    if not network.spec.headless:
        network = without_classifier(network, "--teacher_probe replaces it")
    spec, data = network.spec, data.labelled
    key: dict[str, Any] = {
        "teacher": network.checksum,
        "network": spec.name,
        "data": data.checksum,
        "normalisation": [list(spec.mean or ()), list(spec.std or ())],
        "kind": kind,
    }
    if data.streamed:  # the checksum of files that are decoded while they are read says nothing of the image size
        key["shape"] = list(data.shapes[spec.input])
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    path = folder / f"{kind}_{digest}.pth"

    def read_or_fit() -> dict[str, Any]:
        if path.exists():
            return load_file(path, "delete it to fit the probe again")
        return _fitted(network, key, data, path if keep else None, device)

    found = distributed.main_first(read_or_fit)
    weight = found["weight"]
    place = path if path.exists() else "not written"
    log.info("%s probe of %s: %.2f on the training set, %s", kind, spec.name, found["train_acc"], place)
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight, "bias": found["bias"]})
    network.model.set_submodule(spec.head, head)
    # the file's accuracy belongs to its own classifier
    checkpoint = dataclasses.replace(network.checkpoint, best_acc=None)
    spec = dataclasses.replace(spec, headless=False)
    return dataclasses.replace(
        network, spec=spec, checkpoint=checkpoint, lacks="", changes=f"{network.changes} {kind} probe {digest}"
    )


def _fitted(
    network: Network, key: dict[str, Any], data: DataSet, path: Path | None, device: torch.device
) -> dict[str, Any]:
    """path: the file that keeps it; None: none."""
    net = to_device(network.tapped(("pooled",)).eval(), device)
    log.info("==> fitting a %s probe to %s on %d samples", key["kind"], network.spec.name, len(data.train_labels))
    x, y = features_of(net, data, device)
    weight, bias = HEADS[key["kind"]](x, y, data.num_classes)
    right = sum(
        int(((a @ weight.T + bias).argmax(1) == b).sum()) for a, b in zip(x.split(4096), y.split(4096), strict=True)
    )
    found = {"weight": weight.cpu(), "bias": bias.cpu(), "train_acc": 100 * right / len(y), "key": key}
    if path is not None:
        make_folder(path.parent, "folder of probes")
        atomic_save(found, path)
    return found
