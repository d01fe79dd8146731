"""Data kept on the device as uint8 and augmented there batch by batch: a step copies and synchronises nothing.

A pixel view of an image is a crop of its zero-padded self, mirrored or not:
crop id = (dy * (2 * pad + 1) + dx) * 2 + flip, with dy, dx in 0..2*pad and the identity at dy = dx = pad.
Shape letters: N training samples, B samples of a batch, H W space, C channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from core.protocols import Batch, Batching, DataSet, FullSet, Loader
from dataset.base import DataOptions, check_memory, few, hold_out
from dataset.images.files import scaled
from dataset.order import InOrder, Plan, generator, in_order


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


def resized(train: Split, test: Split, size: int) -> tuple[Split, Split]:
    """Both parts at size x size; UserError if they would take over half of the available memory."""
    check_memory({"train": len(train), "test": len(test)}, size)
    return Split(resize(train.images, size), train.labels), Split(resize(test.images, size), test.labels)


def view(padded: Tensor, index: Tensor, crop: Tensor, pad: int) -> Tensor:
    """Render pixel views exactly as the training loader does.

    padded: uint8 [N, H + 2 pad, W + 2 pad, C], contiguous. index, crop: int64 [B] on the same device.
    Returns float32 [B, C, H, W] in [0, 1], channels_last. One gather: the flip is part of the column index.
    """
    _, rows, columns, channels = padded.shape
    height, width, shifts = rows - 2 * pad, columns - 2 * pad, 2 * pad + 1
    flip, shift = crop % 2, crop // 2
    dy, dx = shift // shifts, shift % shifts
    y = (index * rows + dy)[:, None] + torch.arange(height, device=index.device)  # [B, H], over the rows of all images
    x = (dx + flip * (width - 1))[:, None] + (1 - 2 * flip)[:, None] * torch.arange(width, device=index.device)
    pixels = (y * columns)[:, :, None] + x[:, None, :]  # [B, H, W]
    picked = padded.view(-1, channels).index_select(0, pixels.flatten())
    return scaled(picked.view(len(index), height, width, channels))


class TrainLoader(Loader):
    """The batches of a Plan, a call of batch() for each step. Crop ids depend on (seed, epoch, place in the epoch), not
    on the batch size.

    positions: of the samples in the full training set, if they are a part of it. labelled: as in a Batch.
    """

    labelled: int | None = None

    def __init__(
        self, padded: Tensor, labels: Tensor, pad: int, flips: bool, plan: Plan, positions: Tensor | None = None
    ):
        super().__init__(plan.steps)
        self.padded, self.labels, self.pad, self.flips, self.plan = padded, labels, pad, flips, plan
        self.positions = positions
        self._drawn: int | None = None
        self.set_epoch(1)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        super().set_epoch(epoch, start_step)
        if epoch == self._drawn:
            return
        count, device = len(self.labels), self.labels.device
        shifts = 2 * self.pad + 1
        order = self.plan.order(epoch)
        crops = torch.randint(
            shifts * shifts * 2, (count,), generator=generator("crop", self.plan.batching.seed, epoch)
        )
        if not self.flips:
            crops -= crops % 2
        self.order, self.crops, self._drawn = order.to(device), crops.to(device), epoch
        in_full = order if self.positions is None else self.positions[order]
        self.view_ids = in_full * (shifts * shifts * 2) + crops

    def batch(self, step: int) -> Batch:
        places = self.plan.places_of(step)  # of this process's part of the batch, in the shuffled order
        mine = slice(places.start, places.stop)
        index, crop = self.order[mine], self.crops[mine]
        image = view(self.padded, index, crop, self.pad)
        target = self.labels.index_select(0, index)
        return Batch({"image": image}, target, index, crop=crop, view_id=self.view_ids[mine], labelled=self.labelled)


class ResidentData(DataSet):
    """A labelled image set, kept as uint8 in memory and once on every device with a loader.

    flips: whether a mirrored image keeps its label. pad: pixels of zero padding before the crop, one eighth of the
    side (4 at 32). evaluated_on: the name of the test set in tables.
    num_crops always counts flips, even if they are off, so that a crop id always means the same view.
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        train: Split,
        test: Split,
        *,
        flips: bool,
        evaluated_on: str = "test",
        full: FullSet | None = None,
    ):
        self.full = full
        shape = train.images.shape[1:]
        assert test.images.shape[1:] == shape, f"train {tuple(shape)}, test {tuple(test.images.shape[1:])}"
        self.name, self.classes, self.flips, self.evaluated_on = name, tuple(classes), flips, evaluated_on
        height, width, channels = shape
        self.shapes: Mapping[str, tuple[int, ...]] = {"image": (channels, height, width)}
        self.pad = min(height, width) // 8
        self.num_crops: int | None = (2 * self.pad + 1) ** 2 * 2
        self.train_labels, self.test = train.labels, test
        # Only the padded copy is kept.
        self.padded = torch.zeros(len(train), height + 2 * self.pad, width + 2 * self.pad, channels, dtype=torch.uint8)
        self.train_images.copy_(train.images)
        self._resident: dict[tuple[str, torch.device], tuple[Tensor, Tensor]] = {}

    @property
    def train_images(self) -> Tensor:
        """uint8 [N, H, W, C], a view of the padded set."""
        height, width = self.shapes["image"][1:]
        return self.padded[:, self.pad : self.pad + height, self.pad : self.pad + width]

    def digest_of(self, part: str) -> str:
        return checksum_of(Split(self.train_images, self.train_labels) if part == "train" else self.test)

    def on(self, part: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """("train": padded images, "test": images as they are; labels) on a device, moved there once."""
        device = torch.empty(0, device=device).device  # "cuda" and "cuda:0" are the same device
        if (part, device) not in self._resident:
            images, labels = (
                (self.padded, self.train_labels) if part == "train" else (self.test.images, self.test.labels)
            )
            self._resident[part, device] = images.to(device), labels.to(device)
        return self._resident[part, device]

    def views(self, index: Tensor, crop: Tensor) -> Tensor:
        """Any pixel views of training images, on the device of `index`: float32 [B, C, H, W], as in the loader."""
        return view(self.on("train", index.device)[0], index, crop, self.pad)

    def shuffled(self, batching: Batching, device: torch.device) -> TrainLoader:
        plan = Plan(len(self.train_labels), batching)
        positions = None if self.full is None else self.full.positions
        return TrainLoader(*self.on("train", device), self.pad, self.flips, plan, positions)

    def test_loader(self, batch_size: int, *, device: torch.device, rank: int = 0, world_size: int = 1) -> InOrder:
        """The images unchanged. batch_size counts the samples of this rank; it may exceed the set."""
        images, labels = self.on("test", device)
        return in_batches(images, labels, in_order(len(labels), batch_size, rank, world_size))

    def train_in_order(self, batch_size: int, *, device: torch.device, rank: int = 0, world_size: int = 1) -> InOrder:
        """test_loader() for the training images."""
        images, labels = self.train_images.to(device), self.train_labels.to(device)
        return in_batches(images, labels, in_order(len(labels), batch_size, rank, world_size))


def in_batches(images: Tensor, labels: Tensor, parts: Sequence[range]) -> InOrder:
    """Batches of the parts: float32 images, not augmented. images: uint8 [N, H, W, C]; labels: [N]."""
    positions = torch.arange(len(labels), device=labels.device)

    def batch(part: range) -> Batch:
        mine = slice(part.start, part.stop)
        return Batch({"image": scaled(images[mine])}, labels[mine], positions[mine])

    return InOrder(parts, batch)


def checksum_of(split: Split) -> str:
    """First 16 hex digits of the SHA-256 of shape, pixels and labels."""
    height, width, channels = split.images.shape[1:]
    digest = hashlib.sha256(repr((len(split), (channels, height, width))).encode())
    for chunk in split.images.split(1024):
        digest.update(chunk.contiguous().numpy().data)
    digest.update(split.labels.numpy().data)
    return digest.hexdigest()[:16]


def resident(
    name: str, classes: Sequence[str], train: Split, test: Split | None, options: DataOptions, *, flips: bool
) -> ResidentData:
    """Apply val_fraction and few_ratio, then keep the rest resident. `test` may be None if a slice is held out."""
    if options.val_fraction:
        rest, held = hold_out(train.labels, options.val_fraction)
        train, test = train.take(rest), train.take(held)
    full = None
    if options.few_ratio < 1:
        kept = few(train.labels, options.few_ratio, options.seed)
        full = FullSet(checksum_of(train), len(train), kept)
        train = train.take(kept)
    assert test is not None, f"{name} has neither a test set nor a held-out slice"
    return ResidentData(
        name, classes, train, test, flips=flips, evaluated_on=options.evaluated_on(options.val_dir or "test"), full=full
    )
