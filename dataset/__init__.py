"""Data sets by public name: `dataset_dict[name]` is `load(options: DataOptions) -> DataSet`, imported on demand."""

from __future__ import annotations

from core.registry import Registry
from dataset.recipes import RECIPES, SMALL, Recipe

dataset_dict = Registry(
    "data set",
    {
        "cifar100": "dataset.images.cifar:load_cifar100",
        "cifar10": "dataset.images.cifar:load_cifar10",
        "folder": "dataset.images.folder:load",
        "digits": "dataset.images.digits:load",
        "imagenet": "dataset.images.imagenet:load",
        "utd_mhad": "dataset.recordings.utd_mhad:load_utd_mhad",
        "berkeley_mhad": "dataset.recordings.berkeley_mhad:load_berkeley_mhad",
        "mmact": "dataset.recordings.mmact:load_mmact",
        "stl10": "dataset.images.stl10:load",
        "tinyimagenet": "dataset.images.tinyimagenet:load",
        "unlabelled": "dataset.images.unlabelled:load",
        "kinetics400": "dataset.clips.video:load_kinetics400",
        "video": "dataset.clips.video:load_video",
    },
    aliases={"STL-10": "stl10", "TinyImageNet": "tinyimagenet", "UTD": "utd_mhad"},
)


def recipe(name: str) -> Recipe:
    """Command-line defaults of a data set (flag name -> value), without importing its loader; UserError if unknown."""
    return RECIPES.get(dataset_dict.resolve(name), SMALL)
