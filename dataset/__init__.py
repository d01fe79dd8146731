"""Data sets by public name: `dataset_dict[name]` is `load(options: DataOptions) -> DataSet`, imported on demand."""

from __future__ import annotations

from collections.abc import Mapping

from dataset.recipes import RECIPES, Value
from helper.registry import Registry

dataset_dict = Registry(
    "data set",
    {
        "cifar100": "dataset.cifar:load_cifar100",
        "cifar10": "dataset.cifar:load_cifar10",
        "folder": "dataset.folder:load",
        "digits": "dataset.digits:load",
        "imagenet": "dataset.imagenet:load",
        "utd_mhad": "dataset.utd_mhad:load_utd_mhad",
        "berkeley_mhad": "dataset.berkeley_mhad:load_berkeley_mhad",
        "mmact": "dataset.mmact:load_mmact",
        "stl10": "dataset.stl10:load",
        "tinyimagenet": "dataset.tinyimagenet:load",
        "kinetics400": "dataset.video:load_kinetics400",
        "video": "dataset.video:load_video",
    },
    aliases={"STL-10": "stl10", "TinyImageNet": "tinyimagenet"},
)


def recipe(name: str) -> Mapping[str, Value]:
    """Command-line defaults of a data set (flag name -> value), without importing its loader; UserError if unknown."""
    return RECIPES[dataset_dict.resolve(name)]
