"""ImageNet, and any image-folder tree that does not fit in memory: `train/<class>/**` and `val/<class>/**`.

The tree is imagenet/ or ImageNet/ in the data folder, or the data folder itself. Files are listed in the order of
torchvision's ImageFolder and decoded, cropped and flipped by worker processes (DataLoader), which yield uint8; scaling
and normalisation happen on the device, to which the next batch is copied during a step.

Train: RandomResizedCrop to image_size (224; area 0.08 to 1, aspect 3/4 to 4/3, bilinear with antialias), random
mirroring. Val: shorter side to image_size * 256 / 224, centre crop. dataset/images/folder.py keeps small sets decoded
in memory.
Shape letters: N training samples, B samples of a batch, H W space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.protocols import Batch, Batching, DataSet, Loader
from dataset.base import DataOptions, few, hold_out
from dataset.images.files import SORTING, Files, class_names, find_root, listed, picture, pillow, scaled
from dataset.images.folder import matching_classes
from dataset.order import Plan, in_order, seeded
from dataset.workers import Decoded, WorkedLoader


def load(options: DataOptions) -> StreamedData:
    """List the tree. UserError if the folder is missing, the classes of train and val differ, or val/ is flat."""
    root = find_root(options.root)
    train, classes = listed(root / "train", options.stream.classes_subset)
    if options.val_fraction:
        rest, held = hold_out(train.labels, options.val_fraction)
        train, val = train.take(rest), train.take(held)
    else:
        folder = matching_classes(root, class_names(root / "train"), options.val_dir, SORTING)
        val, _ = listed(folder, options.stream.classes_subset)
    if options.few_ratio < 1:
        train = train.take(few(train.labels, options.few_ratio, options.seed))
    return StreamedData(root, classes, train, val, options)


def view(files: Files, transform: Any, position: int, seed: int) -> tuple[Tensor, int]:
    """uint8 [H, W, 3] and label; the view depends on nothing but the seed."""
    with seeded(seed):
        image = transform(files.root / files.paths[position])
    pixels = image.contiguous() if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    return pixels, int(files.labels[position])


def image_batch(pixels: Tensor, labels: Tensor, positions: Tensor) -> Batch:
    return Batch({"image": scaled(pixels)}, labels, positions)


Frame = tuple[tuple[int, int, int, int], tuple[int, int]]  # left, top, right, bottom of a part; its sides afterwards


def framed(path: Path, choose: Callable[[int, int], Frame], reduced: bool) -> Any:
    """The part of an image that `choose` takes, given its width and height, resized. reduced: if the part of a JPEG is
    at least twice as large as it becomes, the file is decoded at 1/2, 1/4 or 1/8, still not smaller than that."""
    frame, by = None, 1

    def divisor(width: int, height: int, allowed: Sequence[int]) -> int:
        nonlocal frame, by
        frame = (left, top, right, bottom), sides = choose(width, height)
        by = next((s for s in allowed if right - left >= s * sides[0] and bottom - top >= s * sides[1]), 1)
        return by

    image = picture(path, divisor if reduced else None)
    box, sides = frame or choose(*image.size)
    if by > 1:
        return image.resize(sides, pillow().Resampling.BILINEAR, [edge / by for edge in box])
    part = image if box == (0, 0, *image.size) else image.crop(box)
    return part.resize(sides, pillow().Resampling.BILINEAR)


class View:
    """Image file -> a random crop, resized and mirrored at random, then `after`: the pixels and random numbers of
    torchvision's RandomResizedCrop and RandomHorizontalFlip, without what their general form costs."""

    def __init__(self, size: int, after: Sequence[Any] = (), reduced: bool = False):
        from torchvision.transforms import v2

        self.size, self.crop, self.after = size, v2.RandomResizedCrop(size), v2.Compose(after) if after else None
        self.reduced = reduced

    def __call__(self, path: Path) -> Any:
        view = framed(path, self.choose, self.reduced)
        if torch.rand(1) < 0.5:
            view = view.transpose(pillow().Transpose.FLIP_LEFT_RIGHT)
        return view if self.after is None else self.after(view)

    def choose(self, width: int, height: int) -> Frame:
        box = self.crop.make_params([torch.empty(height, width, device="meta")])
        top, left = box["top"], box["left"]
        return (left, top, left + box["width"], top + box["height"]), (self.size, self.size)


def channels_behind(image: Tensor) -> Tensor:
    """[3, H, W] -> [H, W, 3]; a function, so that workers that are not forked can import it."""
    return image.permute(1, 2, 0)


def train_transform(size: int, options: DataOptions) -> View:
    """Image file -> Pillow image; torchvision's classes, in the order of its reference recipes."""
    from torchvision.transforms import v2

    steps: list[Any] = []
    if options.stream.augment == "randaugment":
        steps.append(v2.RandAugment(options.stream.augment_ops, options.stream.augment_magnitude))
    elif options.stream.augment == "trivialaugment":
        steps.append(v2.TrivialAugmentWide())
    elif options.stream.augment == "autoaugment":
        steps.append(v2.AutoAugment())
    if options.stream.random_erase:
        erase = v2.RandomErasing(options.stream.random_erase, value=[124, 116, 104])  # ImageNet's mean colour
        steps += [v2.PILToTensor(), erase, v2.Lambda(channels_behind)]
    return View(size, steps, options.stream.reduced_decode)


class Centre:
    """Image file -> its centre, after the shorter side became size * 256 / 224: the pixels of torchvision's Resize and
    CenterCrop."""

    def __init__(self, size: int, reduced: bool = False):
        from torchvision.transforms import v2

        self.short, self.crop, self.reduced = size * 256 // 224, v2.CenterCrop(size), reduced

    def __call__(self, path: Path) -> Any:
        return self.crop(framed(path, self.choose, self.reduced))

    def choose(self, width: int, height: int) -> Frame:
        sides = [int(self.short * side / min(width, height)) for side in (width, height)]
        return (0, 0, width, height), (sides[0], sides[1])


class StreamedData(DataSet):
    """An image-folder tree, decoded while it is read, by workers or DALI. See core.protocols.DataSet."""

    streamed = True  # not held on the device
    num_crops = None

    def __init__(self, root: Path, classes: Sequence[str], train: Files, val: Files, options: DataOptions):
        self.name, self.classes = "imagenet", tuple(classes)
        self.root, self.train, self.val, self.options = root, train, val, options
        self.size = options.image_size or 224
        self.shapes: Mapping[str, tuple[int, ...]] = {"image": (3, self.size, self.size)}
        self.train_labels = train.labels
        self.evaluated_on = options.evaluated_on(options.val_dir or "val")

    @property
    def described(self) -> dict[str, bool]:
        """For evaluation as in training."""
        return {"reduced_decode": True} if self.options.stream.reduced_decode else {}

    def digest_of(self, part: str) -> str:
        """That of the files; another one if they are decoded at a reduced scale, as their pixels then differ."""
        files = self.train if part == "train" else self.val
        if not self.options.stream.reduced_decode:
            return files.checksum
        return hashlib.sha256(f"{files.checksum} reduced".encode()).hexdigest()[:16]

    def shuffled(self, batching: Batching, device: torch.device) -> Loader:
        options = self.options
        plan = Plan(len(self.train), batching, options.stream.repeated_augmentation)
        if options.stream.dali:
            from dataset.images.dali import DaliLoader

            return DaliLoader(self.train, plan, self.size, device, options)
        samples = self._decoded(self.train, train_transform(self.size, options), replace=options.stream.skip_corrupt)
        return WorkedLoader(samples, plan.steps, plan.places, image_batch, device, options.num_workers)

    def test_loader(self, batch_size: int, *, device: torch.device, rank: int = 0, world_size: int = 1) -> Loader:
        """batch_size counts the samples of this rank, at most 256; every rank has its own slice."""
        plan = [[(i, 0) for i in part] for part in in_order(len(self.val), min(batch_size, 256), rank, world_size)]
        samples = self._decoded(self.val, Centre(self.size, self.options.stream.reduced_decode), replace=False)
        return WorkedLoader(
            samples, len(plan), lambda epoch, start: plan[start:], image_batch, device, self.options.num_workers
        )

    def _decoded(self, files: Files, transform: Any, replace: bool) -> Decoded:
        return Decoded(partial(view, files, transform), len(files), "images", self.options.stream.skip_corrupt, replace)
