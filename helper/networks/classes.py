"""Class names in checkpoints: compares a network's classes and their order with those of the data set."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import torch
from torch import nn

from core.log import log
from core.protocols import UserError
from dataset.images.files import a_few
from helper.networks.load import Network, classifiers_of


def _plain(name: object) -> str:
    return str(name).casefold().replace("_", " ").replace("-", " ")


def _numbered(names: Sequence[str]) -> bool:
    """Whether these are numbers, which replace missing names."""
    return list(names) == [str(i) for i in range(len(names))]


def order_of(recorded: Sequence[object], here: Sequence[object]) -> list[int] | None:
    """The network's position of every class of the data set; None if the classes differ, [] if either side has no
    names."""
    theirs, ours = [_plain(n) for n in recorded], [_plain(n) for n in here]
    if sorted(theirs) == sorted(ours) and len(set(ours)) == len(ours):
        return [theirs.index(name) for name in ours]
    return [] if _numbered(theirs) or _numbered(ours) else None


def matched(network: Network, here: Sequence[object], match: bool) -> Network:
    """The network with logits in the order of the data set's classes `here`; match: permute them if needed.

    UserError if the checkpoint names other classes, or the same classes in another order without `match`. A checkpoint
    without names is not checked.
    """
    recorded = network.checkpoint.meta.get("classes")
    if not isinstance(recorded, list | tuple) or len(recorded) != len(here):
        return network
    path, order = network.checkpoint.path, order_of(recorded, here)
    if order is None:
        known = set(map(_plain, recorded))
        odd = [str(n) for n in here if _plain(n) not in known] or [str(here[0])]
        raise UserError(
            f"{path} was trained on other classes ({a_few(recorded)}; the data set has {a_few(odd)}, which it does not "
            "know): use the data set that it was trained on, or give the same classes the same names"
        )
    if order in ([], list(range(len(here)))):
        return network
    if not match:
        place = next(i for i, j in enumerate(order) if i != j)
        raise UserError(
            f"{path} has the classes of the data set in another order (class {place} is {recorded[place]} in the "
            f"checkpoint, {here[place]} in the data set): pass --match_classes to reorder its logits"
        )
    permute_outputs(network, order)
    log.info("%s: its logits are reordered to the data set's order of classes", path)
    digest = hashlib.blake2b(repr(order).encode(), digest_size=4).hexdigest()
    meta = {**network.checkpoint.meta, "classes": list(map(str, here))}
    checkpoint = dataclasses.replace(network.checkpoint, meta=meta)
    return dataclasses.replace(network, checkpoint=checkpoint, changes=f"{network.changes} classes {digest}")


@torch.no_grad()
def permute_outputs(network: Network, order: Sequence[int]) -> None:
    """Reorder the rows of the classifiers, so that logit i is the former logit order[i]."""
    heads = [network.model.get_submodule(path) for path in classifiers_of(network.spec)]
    if network.spec.branches or not all(isinstance(head, nn.Linear | nn.Conv2d) for head in heads):
        raise UserError(
            f"the classes of {network.spec.name} cannot be reordered (it has more than one linear classifier): rename "
            "the class folders so that they sort as in its training"
        )
    for head in heads:
        for values in head.parameters():
            values.copy_(values[list(order)])
