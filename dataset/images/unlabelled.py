"""Images, or clips, without labels: in addition to a labelled set (every batch holds both, labelled ones first) or
alone.

Shape letters: N labelled images, M unlabelled ones.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.protocols import Batch, Batching, DataSet, FullSet, Loader, UserError
from dataset import dataset_dict
from dataset.base import DataOptions, UnlabelledConfig, check_memory
from dataset.clips.video import VideoData
from dataset.images.files import files_below, is_image
from dataset.images.folder import decode_all
from dataset.images.resident import ResidentData, Split, TrainLoader

NONE = -1  # the target of an image without a label


def load(options: DataOptions) -> UnlabelledData:
    """Every image below options.root, and the labelled set of --eval_probe."""
    name = options.unlabelled.eval_probe
    if options.val_fraction or options.few_ratio < 1:
        raise UserError(
            "--val_fraction and --few_ratio choose among labelled images, but --dataset unlabelled has none: leave "
            "them out"
        )
    if name is None:
        raise UserError(
            "--dataset unlabelled is evaluated on a labelled set: name one with --eval_probe, such as cifar10"
        )
    size = options.image_size or 32
    images = _read(options.root, size, "--dataset unlabelled: the data folder", options.stream.skip_corrupt)
    probe = dataset_dict[name](DataOptions(Path(options.unlabelled.eval_probe_folder), image_size=size))
    if not isinstance(probe, ResidentData) or isinstance(probe, UnlabelledData):
        raise UserError(
            f"--eval_probe {name} is not a set of labelled images held in memory: choose cifar100, cifar10, stl10, "
            "tinyimagenet, digits, or folder for a tree of images"
        )
    return UnlabelledData(images, probe, options.unlabelled.eval_probe_head)


class UnlabelledData(ResidentData):
    """Images whose target is NONE. probe, head: what evaluates a student, and how."""

    def __init__(self, images: Tensor, probe: ResidentData, head: str):
        evaluated_on = f"{head} probe on {probe.name}"
        super().__init__("unlabelled", (), *_alone(images), flips=True, evaluated_on=evaluated_on)
        self.probe, self.head = probe, head
        self.notes = [f"{len(images)} images without labels; the test accuracy is that of a {self.evaluated_on}"]

    def digest_of(self, part: str) -> str:
        return super().digest_of(part) if part == "train" else _both(self.probe.checksum, self.probe.digest_of("test"))

    def taught(self, classes: Sequence[str]) -> UnlabelledData:
        """The same images, for a student that puts out these classes of its teacher."""
        other = copy.copy(self)
        other.classes, other.num_classes = tuple(classes), len(classes)
        return other

    def shuffled(self, batching: Batching, device: torch.device) -> TrainLoader:
        loader = super().shuffled(batching, device)
        loader.labelled = 0
        return loader


def with_unlabelled(data: DataSet, cfg: UnlabelledConfig, skip_corrupt: bool = False) -> DataSet:
    """The data set, with the images or videos of --unlabelled if given."""
    if cfg.unlabelled is None:
        return data
    if isinstance(data, UnlabelledData):
        raise UserError(
            "--dataset unlabelled has no labels, and --unlabelled adds images to a labelled set: leave one out"
        )
    if isinstance(data, VideoData):
        others: DataSet = data.without_labels(Path(cfg.unlabelled), NONE)
    elif "image" in data.shapes:
        images = _read(Path(cfg.unlabelled), data.shapes["image"][-1], "--unlabelled", skip_corrupt)
        flips = getattr(data, "flips", True)
        others = ResidentData("unlabelled", data.classes, *_alone(images), flips=flips)
    else:
        raise UserError(f"--unlabelled adds images or videos, but {data.name} holds recordings: leave it out")
    return SemiLabelled(data, others, cfg.label_ratio or 0.5)


def _alone(images: Tensor) -> tuple[Split, Split]:
    """The images as a training set without labels, and an empty test set."""
    train = Split(images, torch.full((len(images),), NONE))
    return train, Split(images[:0], torch.empty(0, dtype=torch.int64))


def _read(folder: Path, size: int, flag: str, skip_corrupt: bool) -> Tensor:
    """uint8 [M, size, size, 3] of every image below the folder, in sorted order. flag: what names it."""
    found = files_below(folder, flag, "image", is_image)
    check_memory({"train": len(found)}, size)
    return decode_all([(path, NONE) for path in found], size, skip_corrupt).images


class SemiLabelled(DataSet):
    """`labelled`, then others whose target is NONE; they have positions N, N + 1, ... in `train_labels` and the
    index."""

    full_batches = True

    def __init__(self, labelled: DataSet, others: DataSet, ratio: float):
        self._labelled, self.others, self.ratio = labelled, others, ratio
        self.name, self.classes = labelled.name, labelled.classes
        self.shapes, self.evaluated_on = labelled.shapes, labelled.evaluated_on
        self.streamed, self.videos = labelled.streamed, labelled.videos
        self.train_labels = torch.cat([labelled.train_labels, others.train_labels])
        self.num_crops = labelled.num_crops if labelled.num_crops == others.num_crops else None
        self.full = _joined_full(labelled.full, others)
        what = "videos" if labelled.videos else "images"
        counts = f"{len(labelled.train_labels)} {what} with labels and {len(others.train_labels)} without"
        self.notes = [*labelled.notes, f"{counts}; {ratio:g} of each batch has labels"]

    @property
    def labelled(self) -> DataSet:
        return self._labelled

    def digest_of(self, part: str) -> str | None:
        both = part == "train"
        return _both(self._labelled.checksum, self.others.checksum) if both else self._labelled.test_checksum

    @property
    def described(self) -> Mapping[str, Any]:
        return self._labelled.described

    def shuffled(self, batching: Batching, device: torch.device) -> Loader:
        """Every batch is full, so drop_last changes nothing."""
        batch_size, world_size = batching.batch_size, batching.world_size
        share = batch_size // world_size
        if share < 2:
            raise UserError(f"--batch_size {batch_size} is too small for samples with and without labels: raise it")
        with_labels = min(max(round(share * self.ratio), 1), share - 1) * world_size
        full = replace(batching, batch_size=with_labels, drop_last=True)
        return SemiLoader(
            self._labelled.shuffled(full, device),
            self.others.shuffled(replace(full, batch_size=batch_size - with_labels), device),
            len(self._labelled.train_labels),
            self.num_crops,
            self._labelled.full,
        )

    def test_loader(self, batch_size: int, *, device: torch.device, rank: int = 0, world_size: int = 1) -> Loader:
        return self._labelled.test_loader(batch_size, device=device, rank=rank, world_size=world_size)


def _joined_full(full: FullSet | None, others: DataSet) -> FullSet | None:
    """The full labelled set, followed by the unlabelled samples."""
    if full is None or full.positions is None:
        return None
    count = len(others.train_labels)
    positions = torch.cat([full.positions, torch.arange(full.count, full.count + count)])
    return FullSet(_both(full.checksum, others.checksum), full.count + count, positions)


def _both(*checksums: str) -> str:
    return hashlib.sha256(" ".join(checksums).encode()).hexdigest()[:16]


def endless(loader: Loader, start: int) -> Iterator[Batch]:
    """Batches of one epoch after another, starting with this batch."""
    epoch, step = divmod(start, len(loader))
    while True:
        loader.set_epoch(epoch + 1, step)
        yield from loader
        epoch, step = epoch + 1, 0


class SemiLoader(Loader):
    """Batches of both loaders, joined. An epoch is one pass over the longer loader; the shorter one starts again."""

    def __init__(
        self, labelled: Loader, others: Loader, count: int, num_crops: int | None, full: FullSet | None = None
    ):
        """count: number of labelled images. full: the set they are a part of, in which the view ids count."""
        super().__init__(max(len(labelled), len(others)))
        self.parts, self.count, self.num_crops = (labelled, others), count, num_crops
        self.first_view = (count if full is None else full.count) * (num_crops or 0)

    def batches(self, start: int) -> Iterator[Batch]:
        first = (self.epoch - 1) * self.steps
        pairs = zip(*(endless(part, first + start) for part in self.parts), strict=True)
        for _, (one, two) in zip(range(start, self.steps), pairs, strict=False):
            yield self.joined(one, two)

    def joined(self, one: Batch, two: Batch) -> Batch:
        crop = view_id = None
        if self.num_crops is not None and one.crop is not None and two.crop is not None:
            crop = torch.cat([one.crop, two.crop])
            if one.view_id is not None and two.view_id is not None:
                view_id = torch.cat([one.view_id, two.view_id + self.first_view])
        inputs = {name: torch.cat([x, two.inputs[name]]) for name, x in one.inputs.items()}
        order = torch.channels_last if "image" in inputs else torch.contiguous_format
        return replace(
            one,
            inputs={name: x.contiguous(memory_format=order) for name, x in inputs.items()},
            target=torch.cat([one.target, two.target]),
            index=torch.cat([one.index, two.index + self.count]),
            crop=crop,
            view_id=view_id,
            labelled=len(one),
        )

    def end_epoch(self) -> dict[str, Any]:
        """Counts of both parts together."""
        one, two = (part.end_epoch() for part in self.parts)
        return {name: one.get(name, 0) + two.get(name, 0) for name in one | two}
