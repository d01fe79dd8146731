"""Shared by the image data sets: options, a split, stratified selection, resizing.

Shape letters: N samples, H W space, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from core.machine import free
from core.option import NAMED, RESULT, Config, at_least, option, probability, share, share_above_0
from core.protocols import UserError

LARGEST_IMAGE = 4096


@dataclass(frozen=True)
class SourceConfig(Config):
    """The data set, and the part of it to use."""

    heading = "data"

    dataset: str = option("cifar100", "data set; --list shows all", role=NAMED)
    data_folder: str = option("../data/", "folder that holds data sets", short="--data")
    image_size: int | None = option(
        None,
        "side of the images in pixels (default: 224 for imagenet and clips, else 32)",
        check=at_least(8, LARGEST_IMAGE),
        role=RESULT,
    )
    val_fraction: float = option(
        0.0, "hold out this stratified share of the training set and evaluate on it", check=share, role=RESULT
    )
    few_ratio: float = option(1.0, "train on this share of every class", check=share_above_0, role=RESULT)
    num_workers: int = option(
        8,
        "loader processes (or DALI threads) per machine, for data that is not held in memory",
        check=at_least(0, 1024),
    )


@dataclass(frozen=True)
class StreamConfig(Config):
    """Data that is decoded while it is read: image folders, clips, recordings."""

    heading = "data that is decoded while it is read"

    dali: str | None = option(
        None, "decode training images with DALI on the CPU or the GPU", choices=("cpu", "gpu"), role=NAMED
    )
    classes_subset: str | None = option(None, "classes of ImageNet: this many, or these names (a,b,c)", role=RESULT)
    skip_corrupt: bool = option(
        False,
        "skip and count images, videos and recordings that cannot be read or have no counterpart",
        short="--skip_bad",
    )
    augment: str = option(
        "none",
        "augmentation in addition to crop and flip, for image folders decoded while they are read",
        choices=("none", "randaugment", "trivialaugment", "autoaugment"),
        role=RESULT,
    )
    random_erase: float = option(
        0.0, "probability of a blank rectangle in a training image", check=probability, role=RESULT
    )
    repeated_augmentation: int = option(
        1, "copies of each drawn sample in an epoch", check=at_least(1, 100), role=RESULT
    )


@dataclass(frozen=True)
class RecordingConfig(Config):
    """Clips and action recordings."""

    heading = "recordings"

    data_split: str | None = option(None, "published split of action recordings (default: cross_subject)", role=RESULT)
    num_segments: int = option(
        8,
        "frames that a network reads from each clip; a listed video with fewer frames repeats some",
        check=at_least(1, 1000),
        role=RESULT,
    )
    window: int | None = option(None, "samples of a sensor window (default 224)", check=at_least(8), role=RESULT)
    clip_cache: str = option("./cache/clips", "folder for decoded frames of videos")


@dataclass(frozen=True)
class DataOptions:
    """The settings of the data. Raises UserError on a value out of range.

    root: the data folder. image_size: side in pixels of the square images; None: the data set's default. download:
    whether missing files may be fetched. val_fraction: share of the training set, stratified and fixed by seed 0, that
    is held out and replaces the test set, so that nothing is selected on test images.
    few_ratio: share of the (remaining) training set to keep, stratified and fixed by `seed`; smaller ratios are
    subsets of larger ones.

    For data decoded while it is read: num_workers: decoding processes of this rank, or DALI threads.
    dali: "cpu" or "gpu": DALI replaces them. classes_subset: a number of classes or their names, separated by commas.
    skip_corrupt: skip and count images that cannot be read. augment: none, randaugment, trivialaugment, autoaugment.
    random_erase: probability. repeated_augmentation: copies of each drawn sample in an epoch.
    For action recordings: modality: names of the inputs, first that of the tested network, then the teacher's.
    data_split: a published protocol; None: the first. num_segments: frames of a clip. window: samples of a sensor
    window; None: 224. clip_cache: folder of decoded frames; None: memory.
    more: settings of single data sets, by the names of their flags; absent ones have their defaults.
    """

    root: Path
    image_size: int | None = None
    download: bool = True
    val_fraction: float = 0.0
    few_ratio: float = 1.0
    seed: int = 0
    num_workers: int = 0
    dali: str | None = None
    classes_subset: str | None = None
    skip_corrupt: bool = False
    augment: str = "none"
    random_erase: float = 0.0
    repeated_augmentation: int = 1
    modality: tuple[str, ...] = ()
    data_split: str | None = None
    num_segments: int = 8
    window: int | None = None
    clip_cache: Path | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.image_size is not None and not 1 <= self.image_size <= LARGEST_IMAGE:
            raise UserError(f"image_size is {self.image_size}; give a side of 1 to {LARGEST_IMAGE} pixels")
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"val_fraction is {self.val_fraction}; give a share of the training set in [0, 1)")
        if not 0 < self.few_ratio <= 1:
            raise UserError(f"few_ratio is {self.few_ratio}; give a share of the training set in (0, 1]")
        if not 0 <= self.random_erase <= 1:
            raise UserError(f"--random_erase {self.random_erase} must be a probability, from 0 to 1")
        if self.repeated_augmentation < 1:
            raise UserError(f"--repeated_augmentation {self.repeated_augmentation} must be at least 1")
        if self.num_segments < 1:
            raise UserError(f"--num_segments {self.num_segments} must be at least 1")
        if self.window is not None and self.window < 8:
            raise UserError(f"--window {self.window} must be at least 8 samples")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator inside the block and restore its state afterwards.

    torch.manual_seed() would also reseed all accelerators, and keep a stack trace until one of them is used.
    """
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


@dataclass(frozen=True)
class Split:
    """images: uint8 [N, H, W, C]. labels: int64 [N], 0..K-1. Both on the CPU."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        assert self.images.dtype == torch.uint8 and self.images.ndim == 4, (self.images.dtype, self.images.shape)
        assert self.labels.dtype == torch.int64 and self.labels.shape == self.images.shape[:1], self.labels.shape

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: Tensor) -> Split:
        return Split(self.images[positions], self.labels[positions])


def stratified(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Sorted positions [n] int64 of `fraction` of every class, rounded per class; nested for one seed."""
    rng = torch.Generator().manual_seed(seed)
    chosen = []
    for members in (torch.nonzero(labels == c).flatten() for c in labels.unique().tolist()):
        shuffled = members[torch.randperm(len(members), generator=rng)]
        chosen.append(shuffled[: int(len(members) * fraction + 0.5)])
    return torch.cat(chosen).sort().values


def hold_out(labels: Tensor, fraction: float, what: str = "image") -> tuple[Tensor, Tensor]:
    """Positions of (the remaining part, the held-out slice) of --val_fraction, stratified and fixed by seed 0;
    UserError if a part has no sample of a class. what: the word for a sample."""
    held = stratified(labels, fraction, seed=0)
    remaining = torch.ones(len(labels), dtype=torch.bool)
    remaining[held] = False
    rest = remaining.nonzero().flatten()
    wanted = len(labels.unique())
    for side, chosen in (("held-out", held), ("remaining", rest)):
        left = len(labels[chosen].unique())
        if left < wanted:
            raise UserError(
                f"--val_fraction {fraction:g} leaves {wanted - left} of {wanted} classes without a single {side} "
                f"{what} (the smallest class has {_smallest(labels)}); choose another fraction"
            )
    return rest, held


def few(labels: Tensor, ratio: float, seed: int, what: str = "image") -> Tensor:
    """Positions of the stratified subset of --few_ratio, fixed by `seed`; UserError if a class would be left empty."""
    kept = stratified(labels, ratio, seed)
    wanted, left = len(labels.unique()), len(labels[kept].unique())
    if left < wanted:
        raise UserError(
            f"--few_ratio {ratio:g} leaves {wanted - left} of {wanted} classes without a training {what} "
            f"(the smallest class has {_smallest(labels)}); choose a larger ratio"
        )
    return kept


def _smallest(labels: Tensor) -> int:
    return int(labels.unique(return_counts=True)[1].min())


def resize(images: Tensor, size: int) -> Tensor:
    """uint8 [N, H, W, C] -> uint8 [N, size, size, C], bilinear, antialiased when shrinking."""
    if images.shape[1:3] == (size, size):
        return images
    out = torch.empty(len(images), size, size, images.shape[3], dtype=torch.uint8)
    for lo in range(0, len(images), 1024):  # a float copy of the whole set would need four times its memory
        chunk = images[lo : lo + 1024].permute(0, 3, 1, 2).float()
        chunk = F.interpolate(chunk, (size, size), mode="bilinear", align_corners=False, antialias=True)
        out[lo : lo + 1024] = chunk.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return out


def check_memory(counts: dict[str, int], size: int) -> None:
    """UserError if the images and the padded copy of "train" would take over half of the available memory."""
    pixels = sum(counts.values()) * size**2 + counts["train"] * (size + 2 * (size // 8)) ** 2
    needed, left = pixels * 3, free()
    if needed > left / 2:
        raise UserError(
            f"{sum(counts.values())} images at {size}x{size} need {needed / 2**30:.2f} GiB of memory, more "
            f"than half of the {left / 2**30:.2f} GiB available; choose a smaller --image_size or fewer "
            "images"
        )
