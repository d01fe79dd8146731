"""ImageNet, and any image-folder tree that does not fit in memory: `train/<class>/**` and `val/<class>/**`.

The tree is imagenet/ or ImageNet/ in the data folder, or the data folder itself. Files are listed by
torchvision's ImageFolder and decoded, cropped and flipped by worker processes (DataLoader), which yield uint8; scaling
and normalisation happen on the device, to which the next batch is copied during a step.

Train: RandomResizedCrop to image_size (224; area 0.08 to 1, aspect 3/4 to 4/3, bilinear with antialias), random
mirroring. Val: shorter side to image_size * 256 / 224, centre crop. dataset/images/folder.py keeps small sets decoded
in memory.
Shape letters: N training samples, B samples of a batch, H W space.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from core.protocols import Batch, Batching, DataSet, Loader, UserError
from dataset.base import DataOptions, few, hold_out, seeded
from dataset.images.files import (
    Files,
    PictureError,
    class_names,
    find_root,
    flat_val,
    listed,
    picture,
    pillow,
    say_unusual,
    unusual,
)
from dataset.images.folder import matching_classes
from dataset.images.resident import scaled
from dataset.order import Place, Plan, PositionedLoader
from dataset.workers import TIMEOUT, start_worker

Item = tuple[Tensor, int, str]  # uint8 [H, W, 3], position, why it could not be read ("" if it was read)


def load(options: DataOptions) -> StreamedData:
    """List the tree. UserError if the folder is missing, the classes of train and val differ, or val/ is flat."""
    root = find_root(options.root)
    train, classes = listed(root / "train", options.stream.classes_subset)
    names = class_names(root / "train")
    val_folder = None if options.val_fraction else matching_classes(root, names, flat_val, options.val_dir)
    val = None if val_folder is None else listed(val_folder, options.stream.classes_subset)[0]
    if options.val_fraction:
        rest, held = hold_out(train.labels, options.val_fraction)
        train, val = train.take(rest), train.take(held)
    if options.few_ratio < 1:
        train = train.take(few(train.labels, options.few_ratio, options.seed))
    assert val is not None
    return StreamedData(root, classes, train, val, options)


class Decoded(Dataset[Item]):
    """Images as uint8 [H, W, 3]; the key is (position, seed), so that a view depends on nothing else."""

    def __init__(self, files: Files, transform: Any, replace: bool = False):
        self.files, self.transform, self.replace = files, transform, replace

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: Place) -> Item:
        position, seed = place
        why = ""
        for tried in range(len(self.files) if self.replace else 1):
            # replace an unreadable image, so that batches have the same size in all processes
            at = (position + tried) % len(self.files)
            image, reason = self._read(at, seed)
            why = why or reason
            if image is not None:
                return image, at, why
        return torch.zeros(0), position, why

    def _read(self, position: int, seed: int) -> tuple[Tensor | None, str]:
        try:
            with seeded(seed):
                image = self.transform(self.files.root / self.files.paths[position])
        except PictureError as error:
            return None, str(error)
        return image.contiguous() if isinstance(image, Tensor) else torch.from_numpy(np.array(image)), ""


def collated(items: Sequence[Item]) -> tuple[Tensor, Tensor, list[str], list[bool], list[tuple[str, str]]]:
    """Images uint8 [B, H, W, 3], positions [B], reasons, which samples were read, and unusual properties."""
    read = [item[0].ndim == 3 for item in items]
    images = [item[0] for item, good in zip(items, read, strict=True) if good]
    whole = torch.stack(images) if images else torch.zeros(0, 1, 1, 3, dtype=torch.uint8)
    return whole, torch.tensor([item[1] for item in items]), [item[2] for item in items if item[2]], read, unusual()


class Batches(Sampler[list[Place]]):
    """The batches of this process that the loader chose last."""

    def __init__(self) -> None:
        self.batches: Sequence[list[Place]] = ()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Place]]:
        return iter(self.batches)


class Skipped:
    """Unreadable images: an error, or skipped and counted once each (--skip_corrupt)."""

    def __init__(self, allowed: bool):
        self.allowed = allowed
        self.seen: set[str] = set()

    def __call__(self, reasons: Sequence[str]) -> None:
        if reasons and not self.allowed:
            raise UserError(f"{reasons[0]}; repair or remove it, or pass --skip_corrupt to leave it out")
        for reason in reasons:
            if reason not in self.seen:
                self.seen.add(reason)
                logging.getLogger("retort").info("skipped: %s", reason)


class Worked(PositionedLoader):
    """Batches that DataLoader workers decode, copied to the device one step ahead and scaled to [0, 1] there.

    Training takes its batches from a plan; evaluation takes its share in order and leaves out unreadable images.
    """

    def __init__(
        self,
        files: Files,
        transform: Any,
        device: torch.device,
        workers: int,
        skipped: Skipped,
        plan: Plan | Sequence[Any],
    ):
        super().__init__(plan.steps if isinstance(plan, Plan) else len(plan))
        self.files, self.device, self.plan, self.skipped = files, device, plan, skipped
        self.labels = files.labels.to(device)
        self.chosen = Batches()
        self.decoder = DataLoader(
            Decoded(files, transform, replace=skipped.allowed and isinstance(plan, Plan)),
            batch_sampler=self.chosen,
            num_workers=workers,
            collate_fn=collated,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            timeout=TIMEOUT if workers else 0,
            worker_init_fn=start_worker,
            generator=torch.Generator(),  # not the run's own generator
        )
        self.set_epoch(1)

    def end_epoch(self) -> dict[str, int]:
        """For the epoch's row: the number of unreadable images of this process so far."""
        return {"skipped_images": len(self.skipped.seen)} if self.skipped.allowed else {}

    def batches(self, start: int) -> Iterator[Batch]:
        plan = self.plan
        self.chosen.batches = plan.places(self.epoch, start) if isinstance(plan, Plan) else plan[start:]
        return ahead(self._moved(), self.device)

    def _moved(self) -> Iterator[Batch]:
        for images, positions, reasons, read, notes in self.decoder:
            say_unusual(notes)
            self.skipped(reasons)
            if not all(read):
                positions = positions[torch.tensor(read)]
                if not len(positions):
                    continue
            images, positions = (x.to(self.device, non_blocking=True) for x in (images, positions))
            yield Batch({"image": images}, self.labels[positions], positions)


def ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches, scaled; on an accelerator the next one is copied while the caller uses the present one."""
    if device.type != "cuda":
        for batch in batches:
            yield finished(batch)
        return
    stream = torch.cuda.Stream(device)

    def fetch() -> Batch | None:
        with torch.cuda.stream(stream):
            batch = next(batches, None)
            return None if batch is None else finished(batch)

    following = fetch()
    while following is not None:
        batch = following
        current = torch.cuda.current_stream(device)
        current.wait_stream(stream)
        for x in (*batch.inputs.values(), batch.target, batch.index):
            x.record_stream(current)
        following = fetch()
        yield batch


def finished(batch: Batch) -> Batch:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [0, 1]."""
    return Batch({k: scaled(x) for k, x in batch.inputs.items()}, batch.target, batch.index)


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
        steps += [v2.PILToTensor(), Erased(options.stream.random_erase)]
    return View(size, steps, options.stream.reduced_decode)


class Erased:
    """torchvision's RandomErasing, filled with ImageNet's mean colour; uint8 [3, H, W] -> [H, W, 3]."""

    def __init__(self, probability: float):
        from torchvision.transforms import v2

        self.erase = v2.RandomErasing(probability, value=[124, 116, 104])

    def __call__(self, image: Tensor) -> Tensor:
        return self.erase(image).permute(1, 2, 0)


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
        self.name, self.classes, self.num_classes = "imagenet", tuple(classes), len(classes)
        self.root, self.train, self.val, self.options = root, train, val, options
        self.size = options.image_size or 224
        self.shapes: Mapping[str, tuple[int, ...]] = {"image": (3, self.size, self.size)}
        self.train_labels = train.labels
        held_out = f"held-out {options.val_fraction:g} of train" if options.val_fraction else None
        self.evaluated_on = held_out or options.val_dir or "val"

    @property
    def described(self) -> dict[str, bool]:
        """For evaluation as in training."""
        return {"reduced_decode": True} if self.options.stream.reduced_decode else {}

    @cached_property
    def checksum(self) -> str:
        return self._checksum(self.train)

    @cached_property
    def test_checksum(self) -> str:
        return self._checksum(self.val)

    def _checksum(self, files: Files) -> str:
        """That of the files; another one if they are decoded at a reduced scale, as their pixels then differ."""
        if not self.options.stream.reduced_decode:
            return files.checksum
        return hashlib.sha256(f"{files.checksum} reduced".encode()).hexdigest()[:16]

    def shuffled(self, batching: Batching, device: torch.device) -> Loader:
        options = self.options
        plan = Plan(len(self.train), batching, options.stream.repeated_augmentation)
        if options.stream.dali:
            from dataset.images.dali import DaliLoader

            return DaliLoader(self.train, plan, self.size, device, options)
        skipped = Skipped(options.stream.skip_corrupt)
        return Worked(self.train, train_transform(self.size, options), device, options.num_workers, skipped, plan)

    def test_loader(self, batch_size: int, *, device: torch.device, rank: int = 0, world_size: int = 1) -> Loader:
        """batch_size counts the samples of this rank, at most 256; every rank has its own slice."""
        count, batch_size = len(self.val), min(batch_size, 256)
        positions = range(count * rank // world_size, count * (rank + 1) // world_size)
        batches = [[(i, 0) for i in positions[at : at + batch_size]] for at in range(0, len(positions), batch_size)]
        skipped = Skipped(self.options.stream.skip_corrupt)
        transform = Centre(self.size, self.options.stream.reduced_decode)
        return Worked(self.val, transform, device, self.options.num_workers, skipped, batches)
