"""Teachers whose classifier is missing or does not fit the data. No teacher gets a classifier with random weights."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.log import log
from core.protocols import UserError
from distiller_zoo._task import chain_of
from distiller_zoo.base import Distiller
from helper.networks.checkpoint import num_classes_of, weights_in
from helper.networks.load import (
    Network,
    assembled,
    classifiers_of,
    headless_network,
    identified,
    named_network,
    published,
    without_classifier,
)
from models import model_dict
from models._imagenet_names import places

IMAGENET = 1000  # classes


def load_teacher(
    path: str | Path,
    explicit: str | None,
    classes_of: Sequence[str] | int | None,
    shapes: Mapping[str, tuple[int, ...]],
) -> Network:
    """Like load_network(), but a network whose classifier is missing or has other classes is returned without one.

    classes_of: the data set, or the number of classes; None: any number. ImageNet classifiers keep the outputs of the
    data set's classes.
    """
    num_classes = len(classes_of) if isinstance(classes_of, Sequence) else classes_of
    if (named := published(path)) is not None:
        network, classes = named_network(named, None), model_dict[named].published.classes
    else:
        path = weights_in(path)
        checkpoint, spec = identified(path, explicit, shapes, "--model_t")
        if not any(key.startswith(f"{spec.head}.") for key in checkpoint.state):
            return headless_network(path, checkpoint, spec)
        classes = num_classes_of(checkpoint.state, spec)
        network = assembled(path, checkpoint, spec, classes, shapes)
    if classes in (0, num_classes) or classes_of is None:
        return network
    of_imagenet = named is not None or network.checkpoint.meta.get("dataset") == "imagenet"
    if classes == IMAGENET and of_imagenet and not isinstance(classes_of, int):
        chosen = places(classes_of)
        if chosen is not None:
            return with_places(network, chosen)
    return without_classifier(network, f"it was trained for {classes} classes, but the data set has {num_classes}")


def with_places(network: Network, chosen: Sequence[int]) -> Network:
    """The network, with only these outputs of its classifiers."""
    for head in map(network.model.get_submodule, classifiers_of(network.spec)):
        for name in ("weight", "bias"):
            if (values := getattr(head, name, None)) is not None:
                setattr(head, name, nn.Parameter(values.detach()[torch.tensor(chosen)]))
        setattr(head, "out_features" if isinstance(head, nn.Linear) else "out_channels", len(chosen))
    log.info("%s: %d of its %d classes are used, those of the data set", network.spec.name, len(chosen), IMAGENET)
    digest = hashlib.sha256(str(list(chosen)).encode()).hexdigest()[:8]
    checkpoint = dataclasses.replace(network.checkpoint, best_acc=None)
    return dataclasses.replace(network, checkpoint=checkpoint, changes=f"{network.changes} classes {digest}")


def with_view(network: Network, size: int | None, shapes: Mapping[str, tuple[int, ...]]) -> Network:
    """The network, which resizes its images to `size`; None: unchanged.

    UserError if its patches do not divide the side, or it reads no images.
    """
    spec = network.spec
    if spec.input != "image":
        if size is not None:
            raise UserError(f"--teacher_image_size resizes images, but {spec.name} reads {spec.input}: leave it out")
        return network
    side = size or shapes["image"][-1]
    if spec.patch and side % spec.patch:
        near = spec.patch * max(1, round(side / spec.patch))
        raise UserError(
            f"{spec.name} cuts images into patches of {spec.patch} px, which do not divide images of {side} px: "
            f"pass --teacher_image_size {near}, or another multiple of {spec.patch}"
        )
    if size is None:
        return network
    changes = f"{network.changes} at {size} px, {spec.published.interpolation}"
    return dataclasses.replace(network, spec=dataclasses.replace(spec, view=size), changes=changes)


def refuse_headless(teacher: Network, distill: str, method: type[Distiller], cfg: Any) -> None:
    """UserError if a method compares logits, or applies the teacher's classifier, but the teacher has none."""
    for network in (teacher, *teacher.others):
        if not network.spec.headless:
            continue
        weight = f" with -d {cfg.div:g}" if cfg.div else ""
        ensemble = teacher.others and not teacher.by_features
        if ensemble or any(stage.needs_classifier(cfg) for stage in chain_of(method)):
            raise UserError(
                f"{network.checkpoint.path} ({network.spec.name}) has no classifier for this data ({network.lacks}), "
                f"but {'an ensemble' if ensemble else f'--distill {distill}{weight}'} reads its logits: fit one "
                "with --teacher_probe linear (or means), choose a method of features with -d 0, such as --distill "
                "embed -d 0, or train a teacher with train_teacher.py"
            )
