"""Videos by list: Kinetics-400 and any set in its published formats, `--dataset kinetics400` and `--dataset video`.

A line is `PATH LABEL` (a video file), `FOLDER FRAMES LABEL` (images extracted from one) or `FOLDER OFFSET FRAMES
LABEL`; paths are relative to the data folder, labels count from 0. kinetics400 looks for the published names.
Shape letters: B clips, V views of a clip in evaluation, T frames, S pixels of a side.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from dataset import clip_transforms as ct
from dataset.base import DataOptions, few, hold_out
from dataset.clips import ClipSource, UnreadableError
from dataset.frame_reader import FrameReader
from dataset.frame_sampling import dense_frames, sample_frames
from dataset.resident import generator
from dataset.workers import start_worker
from helper.protocols import Batch, UserError

SIDE = 224
SHORT_SIDE = 256  # where the crop is 224
TEMPLATE = "img_{:05}.jpg"
LARGEST_TEST_BATCH = 32  # clips; a clip of eight frames takes 5 MB as float
KINETICS = {
    part: (f"kinetics400_{part}_list_videos.txt", f"kinetics400_{part}_list_rawframes.txt") for part in ("train", "val")
}
CROPS = ("multiscale13", "multiscale5", "resized", "centre")


@dataclass(frozen=True)
class Entry:
    """One clip of a list."""

    source: ClipSource
    label: int
    where: str  # file and line


@dataclass(frozen=True)
class ClipSettings:
    """How a clip becomes what a network sees.

    train_crop: multiscale13 (TSM) or multiscale5 (TSN): MultiScaleCrop with 13 or 5 places; resized: RandomResizedCrop;
    centre: none. flip: whether clips are mirrored, half of them; pairs: classes that change places then.
    """

    num_segments: int = 8
    size: int = SIDE
    short_side: int = SHORT_SIDE
    sampling: str = "uniform"
    train_crop: str = "multiscale13"
    flip: bool = True
    pairs: Mapping[int, int] | None = None

    def train_view(self, reader: FrameReader, entry: Entry, rng: np.random.Generator) -> tuple[Tensor, int]:
        """(uint8 [T, C, S, S], label) with every draw taken from rng."""
        n = reader.count(entry.source)
        if self.sampling == "dense":
            index = dense_frames(n, self.num_segments, rng)
        else:
            index = sample_frames(n, self.num_segments, rng=rng)
        clip = ct.as_clip(reader.read(entry.source, index.tolist()))
        height, width = clip.shape[-2:]
        if self.train_crop.startswith("multiscale"):
            box = ct.multiscale_crop(height, width, self.size, 13 if self.train_crop.endswith("13") else 5, rng)
        elif self.train_crop == "resized":
            box = ct.random_resized_crop(height, width, rng)
        else:
            box = ct.centre_crop(height, width, min(self.size, height, width))
        clip = ct.resize(ct.crop(clip, box), self.size, self.size)
        label = entry.label
        if self.flip and rng.random() < 0.5:
            clip, label = ct.mirrored(clip, label, self.pairs or {})
        return clip, label

    def check(self, views: TestViews) -> None:
        """UserError for views that no clip has."""
        if views.clips < 1:
            raise UserError(f"--clips {views.clips} must be at least 1")
        if self.sampling != "dense" and views.clips > 2:
            raise UserError(
                f"{views.clips} clips need --sampling dense: uniform sampling has one, or two with other frames"
            )
        size = views.size or self.size
        if views.crops == "three":
            ct.three_crops(self.short_side, self.short_side, size)
        elif views.crops == "ten":
            ct.ten_crops(self.short_side, self.short_side, size)

    def test_views(self, reader: FrameReader, entry: Entry, views: TestViews) -> tuple[Tensor, int]:
        """(uint8 [V * T, C, S, S], label): clips in turn, and of each clip its crops."""
        n, t = reader.count(entry.source), views.num_segments or self.num_segments
        if self.sampling == "dense":
            index = dense_frames(n, t, starts=views.clips)
        else:
            index = sample_frames(n, t, twice=views.clips == 2)
        clip = ct.as_clip(reader.read(entry.source, index.tolist()))
        height, width = clip.shape[-2:]
        size = views.size or self.size
        if views.crops == "ten":
            boxes = ct.ten_crops(height, width, size)
        elif views.crops == "three":
            boxes = [(box, False) for box in ct.three_crops(height, width, size)]
        else:
            boxes = [(ct.centre_crop(height, width, min(size, height, width)), False)]
        parts = []
        for frames in clip.split(t):
            for box, is_mirrored in boxes:
                part = ct.resize(ct.crop(frames, box), size, size)
                parts.append(part.flip(-1) if is_mirrored else part)
        return torch.cat(parts), entry.label


@dataclass(frozen=True)
class TestViews:
    """What evaluation sees of a clip.

    clips: of uniform sampling one, or two (the published twice_sample: the middles of the segments, then their starts);
    of dense sampling that many starts. crops: one, three or ten. size, num_segments: None keeps those of training.
    """

    __test__ = False

    clips: int = 1
    crops: str = "one"
    size: int | None = None
    num_segments: int | None = None

    @property
    def count(self) -> int:
        return self.clips * {"one": 1, "three": 3, "ten": 10}[self.crops]


def read_entries(path: Path, root: Path, template: str = TEMPLATE) -> list[Entry]:
    """The clips of a list. UserError names file and line of what does not parse."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the list of videos '{path}': {reason}") from error
    found = [
        _entry(line.strip(), root, template, f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not found:
        raise UserError(f"the list '{path}' names no videos; expected lines of the form PATH LABEL")
    return found


def _entry(line: str, root: Path, template: str, where: str) -> Entry:
    name, *numbers = line.split()
    while numbers and not _is_number(numbers[0]):  # a name with spaces in it
        name = f"{name} {numbers.pop(0)}"
    if not 1 <= len(numbers) <= 3 or not all(map(_is_number, numbers)):
        raise UserError(
            f"{where}: '{line[:80]}' is not of the form PATH LABEL, FOLDER FRAMES LABEL or FOLDER OFFSET FRAMES LABEL"
        )
    *counts, label = map(int, numbers)
    if label < 0:
        raise UserError(f"{where}: the class {label} is negative, and classes count from 0")
    if not counts:
        return Entry(ClipSource(root / name), label, where)
    if Path(name).suffix and (root / name).is_file():
        form = "FOLDER FRAMES LABEL" if len(counts) == 1 else "FOLDER OFFSET FRAMES LABEL"
        raise UserError(f"{where}: '{line[:80]}' is of the form {form}, but '{name}' is a file; of a video, PATH LABEL")
    offset, count = (0, counts[0]) if len(counts) == 1 else counts
    if count < 1:
        raise UserError(f"{where}: '{name}' has {count} frames; leave the line out or extract them again")
    return Entry(ClipSource(root / name, template, first=1 + offset, count=count), label, where)


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def check_labels(entries: Sequence[Entry], num_classes: int) -> None:
    """UserError for the first class that is out of range."""
    for entry in entries:
        if entry.label >= num_classes:
            raise UserError(
                f"{entry.where}: the class {entry.label} is out of range, the data set has 0 to {num_classes - 1}"
            )


class _Items(torch_data.Dataset[Any]):
    """(place in the epoch, position in the list) -> (uint8 clip, label, position, message of what was replaced)."""

    def __init__(self, entries: Sequence[Entry], view: Callable[[Entry, int], tuple[Tensor, int]], skip: str | None):
        self.entries, self.view, self.skip = entries, view, skip

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int, int, str] | UserError:
        place, position = item
        message = ""
        for step in range(len(self.entries)):
            entry = self.entries[(position + step) % len(self.entries)]
            try:
                clip, label = self.view(entry, place)
            except UserError as error:
                if self.skip is None or not isinstance(error, UnreadableError):
                    return error  # raised where it can be told in one sentence
                message = message or str(error)
                if self.skip == "leave out":
                    return torch.empty(0), -1, position, message
            else:
                return clip, label, (position + step) % len(self.entries), message
        return UserError(f"not one of {len(self.entries)} clips can be read, the first because {message}")


def _collate(items: Sequence[Any]) -> Any:
    failed = next((item for item in items if isinstance(item, UserError)), None)
    if failed is not None:
        return failed
    messages = [m for *_, m in items if m]
    good = [item for item in items if item[1] >= 0]
    if not good:
        return None, None, None, messages
    widest = max(clip.shape[1] for clip, *_ in good)
    clips = torch.stack([clip.expand(-1, widest, -1, -1) for clip, *_ in good])
    return clips, torch.tensor([g[1] for g in good]), torch.tensor([g[2] for g in good]), messages


class ClipLoader:
    """Batches of clips, read by worker processes; a function of (seed, epoch, place in the epoch) alone.

    Global batch k is perm[k*B : (k+1)*B], cut into world_size contiguous slices, as dataset.resident does. In training
    a clip that cannot be read is replaced by the next one of the list (skip_corrupt), in evaluation it is left out.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        view: Callable[[int, Entry, int], tuple[Tensor, int]],
        batches: Callable[[int], list[list[tuple[int, int]]]],
        *,
        views: int,
        frames: int,
        skip: str | None,
        workers: int,
        device: torch.device,
        identity: Mapping[str, int],
    ):
        self.entries, self.view, self.batches = entries, view, batches
        self.views, self.frames, self.skip = views, frames, skip
        self.workers, self.device, self._identity = workers, device, dict(identity)
        self.steps = len(batches(1))
        self.bad: set[str] = set()  # messages, each told once
        self.set_epoch(1)

    def __len__(self) -> int:
        return self.steps

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        self.epoch, self.step, self._fresh = epoch, start_step, True

    def __iter__(self) -> Iterator[Batch]:
        start = self.step if self._fresh else 0
        self._fresh = False
        plan = self.batches(self.epoch)[start:]
        items = _Items(self.entries, partial(self.view, self.epoch), self.skip)
        loader = torch_data.DataLoader(
            items,
            batch_sampler=plan,
            collate_fn=_collate,
            num_workers=min(self.workers, len(plan)),
            multiprocessing_context="fork" if self.workers and plan else None,  # views are closures
            worker_init_fn=start_worker,
            generator=torch.Generator().manual_seed(0),  # else an iterator would draw from the global one
        )
        for step, collated in enumerate(loader, start):
            self.step = step + 1
            if isinstance(collated, UserError):
                raise collated
            clips, target, index, messages = collated
            for message in [m for m in messages if m not in self.bad]:
                self.bad.add(message)
                warnings.warn(f"left out: {message}", stacklevel=2)
            if clips is not None:
                yield self._batch(clips, target, index)

    def _batch(self, clips: Tensor, target: Tensor, index: Tensor) -> Batch:
        if self.device.type == "cuda":
            clips = clips.pin_memory()
        clips = clips.to(self.device, non_blocking=True)
        video = clips.unflatten(1, (self.views, self.frames)).flatten(0, 1)  # [B * V, T, C, S, S]
        video = (video.float() / 255).expand(-1, -1, 3, -1, -1)
        return Batch({"video": video}, target.to(self.device), index.to(self.device), views=self.views)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "step": self.step, **self._identity}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for key, value in self._identity.items():
            if state[key] != value:
                raise UserError(
                    f"the checkpoint was written with {key} {state[key]}, this run has {value}; "
                    f"resume with {key} {state[key]} or start another run"
                )
        self.set_epoch(state["epoch"], state["step"])


class VideoData:
    """Clips by list, decoded as they are needed."""

    num_crops = None  # augmentation is open-ended

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        train: Sequence[Entry],
        test: Sequence[Entry],
        settings: ClipSettings,
        reader: FrameReader,
        *,
        skip_corrupt: bool = False,
        workers: int = 0,
        evaluated_on: str = "test",
    ):
        self.name, self.classes, self.train, self.test = name, tuple(classes), list(train), list(test)
        self.num_classes = len(self.classes)
        self.settings, self.reader = settings, reader
        self.skip_corrupt, self.workers, self.evaluated_on = skip_corrupt, workers, evaluated_on
        side = settings.size
        self.shapes: Mapping[str, tuple[int, ...]] = {"video": (settings.num_segments, 3, side, side)}
        self.train_labels = torch.tensor([e.label for e in self.train], dtype=torch.int64)

    @property
    def described(self) -> dict[str, object]:
        """What a checkpoint's meta says of the clips its network was trained on, so that it is evaluated on such."""
        return {
            "shapes": {entry: list(shape) for entry, shape in self.shapes.items()},
            "sampling": self.settings.sampling,
            "short_side": self.settings.short_side,
        }

    @cached_property
    def checksum(self) -> str:
        return self._checksum(self.train)

    @cached_property
    def test_checksum(self) -> str:
        return self._checksum(self.test)

    def _checksum(self, entries: Sequence[Entry]) -> str:
        """Of names, sizes and labels, and of how a clip is rendered; pixels of a large set are never all read."""
        digest = hashlib.sha256(repr(self.settings).encode())
        if self.reader.decoder != "av":
            digest.update(self.reader.decoder.encode())
        for e in entries:
            size = e.source.path.stat().st_size if e.source.path.is_file() else e.source.count
            digest.update(f"{e.source.path.name} {size} {e.label}\n".encode())
        return digest.hexdigest()[:16]

    def train_loader(
        self,
        batch_size: int,
        *,
        seed: int,
        device: torch.device,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> ClipLoader:
        """batch_size counts the clips of all ranks together."""
        count = len(self.train)
        if not 1 <= batch_size <= count:
            raise UserError(f"batch_size is {batch_size}, but the training set has {count} clips; give 1 to {count}")
        if batch_size % world_size:
            raise UserError(
                f"batch_size {batch_size} cannot be divided among {world_size} processes; "
                f"give a multiple of {world_size}"
            )

        def batches(epoch: int) -> list[list[tuple[int, int]]]:
            order = torch.randperm(count, generator=generator("order", seed, epoch)).tolist()
            plan = []
            for first in range(0, count, batch_size):
                size = min(batch_size, count - first)
                if size < batch_size and (drop_last or size < world_size):
                    break
                mine = range(first + size * rank // world_size, first + size * (rank + 1) // world_size)
                plan.append([(place, order[place]) for place in mine])
            return plan

        def view(epoch: int, entry: Entry, place: int) -> tuple[Tensor, int]:
            return self.settings.train_view(self.reader, entry, np.random.default_rng([seed, epoch, place]))

        return ClipLoader(
            self.train,
            view,
            batches,
            views=1,
            frames=self.settings.num_segments,
            skip="replace" if self.skip_corrupt else None,
            workers=self.workers,
            device=device,
            identity={"seed": seed, "batch_size": batch_size, "train_clips": count},
        )

    @staticmethod
    def clip_views(**chosen: Any) -> TestViews:
        """Several views of a test clip, for test_loader."""
        return TestViews(**chosen)

    def test_loader(
        self,
        batch_size: int,
        *,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        views: TestViews | None = None,
    ) -> ClipLoader:
        """One view a clip, or `views`; batches then hold B * V clips. Rank r holds an exact slice of its own."""
        chosen = views or TestViews()
        self.settings.check(chosen)
        first, last = len(self.test) * rank // world_size, len(self.test) * (rank + 1) // world_size
        size = max(1, min(batch_size, LARGEST_TEST_BATCH) // chosen.count)
        plan = [[(i, i) for i in range(at, min(at + size, last))] for at in range(first, last, size)]

        def view(epoch: int, entry: Entry, place: int) -> tuple[Tensor, int]:
            return self.settings.test_views(self.reader, entry, chosen)

        return ClipLoader(
            self.test,
            view,
            lambda epoch: plan,
            views=chosen.count,
            frames=chosen.num_segments or self.settings.num_segments,
            skip="leave out" if self.skip_corrupt else None,
            workers=self.workers,
            device=device,
            identity={},
        )


def load_kinetics400(options: DataOptions) -> VideoData:
    """Kinetics-400 in OpenMMLab's layout: lists and videos_train, videos_val (or rawframes_*) in the data folder."""
    more = options.more
    lists: list[Path] = []
    roots: list[Path] = []
    for part, flag in (("train", "train_list"), ("val", "test_list")):
        usual = [options.root / name for name in KINETICS[part]]
        path = Path(more[flag]) if more.get(flag) else next((p for p in usual if p.is_file()), None)
        if path is None:
            raise UserError(
                f"'{options.root}' holds neither {KINETICS[part][0]} nor {KINETICS[part][1]}; put one there or name a "
                f"list with --{flag}"
            )
        kind = "rawframes" if "rawframes" in path.name else "videos"
        folder = options.root / f"{kind}_{part}"
        lists.append(path)
        roots.append(folder if folder.is_dir() else options.root)
    names_file = options.root / "kinetics_class_names.txt"
    classes = names_file.read_text().split("\n") if names_file.is_file() else []
    names = [c.strip() for c in classes if c.strip()] if classes else [str(i) for i in range(400)]
    if len(names) != 400:
        raise UserError(f"'{names_file}' names {len(names)} classes, and Kinetics-400 has 400")
    return _load("kinetics400", options, lists[0], lists[1], roots, names)


def load_video(options: DataOptions) -> VideoData:
    """Any lists: --train_list and --test_list, train.txt and test.txt in the data folder by default."""
    more = options.more
    paths = [Path(more.get(f"{part}_list") or options.root / f"{part}.txt") for part in ("train", "test")]
    return _load("video", options, paths[0], paths[1], [options.root] * 2, None)


def _load(
    name: str, options: DataOptions, train_list: Path, test_list: Path, roots: Sequence[Path], classes: list[str] | None
) -> VideoData:
    more = options.more
    template = more.get("frame_template") or TEMPLATE
    train = read_entries(train_list, roots[0], template)
    evaluated_on = "test"
    if options.val_fraction:
        rest, held = hold_out(torch.tensor([e.label for e in train]), options.val_fraction, "clip")
        train, test = ([train[i] for i in part.tolist()] for part in (rest, held))
        evaluated_on = f"held-out {options.val_fraction:g} of train"
    else:
        test = read_entries(test_list, roots[1], template)
    if classes is None:
        classes = [str(i) for i in range(1 + max(e.label for e in train))]
    check_labels([*train, *test], len(classes))
    if options.few_ratio < 1:
        kept = few(torch.tensor([e.label for e in train]), options.few_ratio, options.seed, "clip")
        train = [train[i] for i in kept.tolist()]
    size = options.image_size or SIDE
    short_side = more.get("short_side") or round(size * SHORT_SIDE / SIDE)
    if short_side < size:
        raise UserError(f"--short_side {short_side} is less than --image_size {size}, which is cropped out of it")
    settings = ClipSettings(
        num_segments=options.num_segments,
        size=size,
        short_side=short_side,
        sampling=more.get("sampling") or "uniform",
        train_crop=more.get("train_crop") or "multiscale13",
        flip=not more.get("no_flip"),
        pairs=ct.flip_pairs(more.get("flip_pairs") or ""),
    )
    cache = more.get("frame_cache")
    decoder = more.get("decoder") or "av"
    reader = FrameReader(short_side, None if cache is None else Path(cache), bool(more.get("seek")), decoder)
    if not options.skip_corrupt:
        require_files([*train, *test])
    return VideoData(
        name,
        classes,
        train,
        test,
        settings,
        reader,
        skip_corrupt=options.skip_corrupt,
        workers=options.num_workers,
        evaluated_on=evaluated_on,
    )


def require_files(entries: Sequence[Entry]) -> None:
    """UserError for the first clip that is not there or empty; what is inside is found when it is read."""
    for entry in entries:
        path = entry.source.path
        try:
            empty = path.is_file() and not path.stat().st_size
            there = path.exists()
        except OSError as error:
            raise UserError(f"{entry.where}: cannot read '{path}': {error.strerror}") from error
        if not there or empty:
            what = "is empty (0 bytes)" if there else "does not exist"
            raise UserError(
                f"{entry.where}: the video '{path}' {what}; fetch it, or pass --skip_corrupt to leave it out"
            )
