"""The 1000 classes of ImageNet's classifiers: by WordNet number (n01440764) and by name (tench)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


@cache
def _tables() -> list[dict[str, int]]:
    """Name -> position, for each way to name the classes. timm has the numbers, torchvision its own names."""
    from torchvision.models import ResNet18_Weights

    lists = [ResNet18_Weights.IMAGENET1K_V1.meta["categories"]]
    try:
        from timm.data import ImageNetInfo
    except ImportError:
        pass
    else:
        info = ImageNetInfo()
        lists += [info.label_names(), [text.split(",")[0] for text in info.label_descriptions()]]
    tables = []
    for names in lists:
        plain = [_plain(name) for name in names]
        twice = {name for name, count in Counter(plain).items() if count > 1}  # two classes are called crane
        tables.append({name: i for i, name in enumerate(plain) if name not in twice})
    return tables


def places(classes: Sequence[str]) -> list[int] | None:
    """The position of each class in an ImageNet classifier; None if they are not distinct classes of ImageNet."""
    for table in _tables():
        found = [table.get(_plain(name)) for name in classes]
        if None not in found and len(set(found)) == len(found):
            return [place for place in found if place is not None]
    return None
