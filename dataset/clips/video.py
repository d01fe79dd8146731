"""Videos by list: `--dataset kinetics400`, and `--dataset video` for any set in the same list formats.

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

from core.log import log
from core.protocols import Batch, Batching, DataSet, UserError
from dataset.base import DataOptions, VideoConfig, few, hold_out
from dataset.clips import clip_transforms as ct
from dataset.clips.decode import UnreadableError
from dataset.clips.frame_reader import FrameReader
from dataset.clips.lists import Entry, check_labels, describe_oddities, read_entries, require_files, videos_below
from dataset.clips.views import SHORT_SIDE, SIDE, ClipSettings, TestViews
from dataset.images.files import say_unusual, unusual
from dataset.order import Plan, PositionedLoader
from dataset.workers import TIMEOUT, start_worker

LISTS = ("train_list", "test_list")  # files that say which clips there are
FOUND_BY = ("frame_template", "decoder")  # how their frames are read

LARGEST_TEST_BATCH = 32  # clips; a clip of eight frames takes 5 MB as float

KINETICS = {
    part: (f"kinetics400_{part}_list_videos.txt", f"kinetics400_{part}_list_rawframes.txt") for part in ("train", "val")
}


class _Items(torch_data.Dataset[Any]):
    """(place in the epoch, position in the list) -> (uint8 clip, label, position, message about a replaced clip)."""

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
                    return error  # raised later, as one sentence
                message = message or str(error)
                if self.skip == "leave out":
                    return torch.empty(0), 0, position, message
            else:
                return clip, label, (position + step) % len(self.entries), message
        return UserError(f"none of the {len(self.entries)} clips can be read; the first error: {message}")


def _collate(items: Sequence[Any]) -> Any:
    failed = next((item for item in items if isinstance(item, UserError)), None)
    if failed is not None:
        return failed
    notes = unusual()
    messages = [m for *_, m in items if m]
    good = [item for item in items if len(item[0])]
    if not good:
        return None, None, None, messages, notes
    widest = max(clip.shape[1] for clip, *_ in good)
    clips = torch.stack([clip.expand(-1, widest, -1, -1) for clip, *_ in good])
    return clips, torch.tensor([g[1] for g in good]), torch.tensor([g[2] for g in good]), messages, notes


@dataclass(frozen=True)
class Reading:
    """How clips are read. views: per clip. frames: per view. skip: "replace" an unreadable clip with the next one of
    the list (in training), "leave out" (in evaluation), or None for an error."""

    views: int
    frames: int
    skip: str | None
    workers: int


class ClipLoader(PositionedLoader):
    """Batches of clips, read by worker processes; they depend only on (seed, epoch, place in the epoch).

    plan: the batches of an epoch, each a list of (place, position in the list). view: (epoch, entry, place) -> clip and
    label.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        view: Callable[[int, Entry, int], tuple[Tensor, int]],
        plan: Callable[[int], list[list[tuple[int, int]]]],
        reading: Reading,
        device: torch.device,
    ):
        super().__init__(len(plan(1)))
        self.entries, self.view, self.plan = entries, view, plan
        self.reading, self.device = reading, device
        self.bad: set[str] = set()  # messages, each shown once

    def batches(self, start: int) -> Iterator[Batch]:
        plan, workers = self.plan(self.epoch)[start:], self.reading.workers
        items = _Items(self.entries, partial(self.view, self.epoch), self.reading.skip)
        loader = torch_data.DataLoader(
            items,
            batch_sampler=plan,
            collate_fn=_collate,
            num_workers=min(workers, len(plan)),
            timeout=TIMEOUT if workers and plan else 0,
            multiprocessing_context="fork" if workers and plan else None,  # views are closures
            worker_init_fn=start_worker,
            generator=torch.Generator().manual_seed(0),  # otherwise an iterator would draw from the global generator
        )
        for collated in loader:
            if isinstance(collated, UserError):
                raise collated
            clips, target, index, messages, notes = collated
            say_unusual(notes)
            for message in [m for m in messages if m not in self.bad]:
                self.bad.add(message)
                warnings.warn(f"left out: {message}", stacklevel=2)
            if clips is not None:
                yield self._batch(clips, target, index)

    def _batch(self, clips: Tensor, target: Tensor, index: Tensor) -> Batch:
        if self.device.type == "cuda":
            clips = clips.pin_memory()
        clips = clips.to(self.device, non_blocking=True)
        views = self.reading.views
        video = clips.unflatten(1, (views, self.reading.frames)).flatten(0, 1)  # [B * V, T, C, S, S]
        video = (video.float() / 255).expand(-1, -1, 3, -1, -1)
        return Batch({"video": video}, target.to(self.device), index.to(self.device), views=views)


class VideoData(DataSet):
    """Clips by list, decoded while they are read."""

    num_crops = None  # augmentation is open-ended
    videos = True

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        train: Sequence[Entry],
        test: Sequence[Entry],
        settings: ClipSettings,
        reader: FrameReader,
        options: DataOptions,
        evaluated_on: str = "test",
    ):
        self.name, self.classes, self.train, self.test = name, tuple(classes), list(train), list(test)
        self.num_classes = len(self.classes)
        self.settings, self.reader = settings, reader
        self.options, self.evaluated_on = options, evaluated_on
        side = settings.size
        self.shapes: Mapping[str, tuple[int, ...]] = {"video": (settings.num_segments, 3, side, side)}
        self.train_labels = torch.tensor([e.label for e in self.train], dtype=torch.int64)

    def without_labels(self, folder: Path, label: int) -> VideoData:
        """The videos below a folder, read as those of this set, all with one label, that of none."""
        entries = videos_below(folder, label)
        return VideoData("unlabelled", self.classes, entries, [], self.settings, self.reader, self.options)

    @property
    def described(self) -> dict[str, object]:
        """Entries of a checkpoint's meta about the training clips, for evaluation on clips of the same kind."""
        return {
            "shapes": {entry: list(shape) for entry, shape in self.shapes.items()},
            "sampling": self.settings.sampling,
            "short_side": self.settings.short_side,
            **{k: v for k in FOUND_BY if (v := getattr(self.options.video, k)) != getattr(VideoConfig, k)},
            **{k: str(Path(v).resolve()) for k in LISTS if (v := getattr(self.options.video, k))},
        }

    @cached_property
    def checksum(self) -> str:
        return self._checksum(self.train)

    @cached_property
    def test_checksum(self) -> str:
        return self._checksum(self.test)

    def _checksum(self, entries: Sequence[Entry]) -> str:
        """Checksum of names, sizes, labels and settings; the pixels of a large set are not all read."""
        digest = hashlib.sha256(repr(self.settings).encode())
        if self.reader.decoder != "av":
            digest.update(self.reader.decoder.encode())
        for e in entries:
            size = e.source.path.stat().st_size if e.source.path.is_file() else e.source.count
            digest.update(f"{e.source.path.name} {size} {e.label}\n".encode())
        return digest.hexdigest()[:16]

    def shuffled(self, batching: Batching, device: torch.device) -> ClipLoader:
        plan = Plan(len(self.train), batching, what="clips")

        def places(epoch: int) -> list[list[tuple[int, int]]]:
            order = plan.order(epoch).tolist()
            return [[(place, order[place]) for place in plan.places_of(step)] for step in range(plan.steps)]

        def view(epoch: int, entry: Entry, place: int) -> tuple[Tensor, int]:
            return self.settings.train_view(self.reader, entry, np.random.default_rng([batching.seed, epoch, place]))

        skip = "replace" if self.options.stream.skip_corrupt else None
        reading = Reading(1, self.settings.num_segments, skip, self.options.num_workers)
        return ClipLoader(self.train, view, places, reading, device)

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
        """One view per clip, or `views`: batches then hold B * V clips. Every rank has its own exact slice."""
        chosen = views or TestViews()
        self.settings.check(chosen)
        first, last = len(self.test) * rank // world_size, len(self.test) * (rank + 1) // world_size
        size = max(1, min(batch_size, LARGEST_TEST_BATCH) // chosen.count)
        plan = [[(i, i) for i in range(at, min(at + size, last))] for at in range(first, last, size)]

        def view(epoch: int, entry: Entry, place: int) -> tuple[Tensor, int]:
            return self.settings.test_views(self.reader, entry, chosen)

        skip = "leave out" if self.options.stream.skip_corrupt else None
        reading = Reading(chosen.count, self.settings.num_segments, skip, self.options.num_workers)
        return ClipLoader(self.test, view, lambda epoch: plan, reading, device)


def load_kinetics400(options: DataOptions) -> VideoData:
    """Kinetics-400 in OpenMMLab's layout: lists and videos_train, videos_val (or rawframes_*) in the data folder."""
    given = {"train_list": options.video.train_list, "test_list": options.video.test_list}
    lists: list[Path] = []
    roots: list[Path] = []
    for part, flag in (("train", "train_list"), ("val", "test_list")):
        usual = [options.root / name for name in KINETICS[part]]
        path = Path(named) if (named := given[flag]) else next((p for p in usual if p.is_file()), None)
        if path is None:
            raise UserError(
                f"'{options.root}' holds neither {KINETICS[part][0]} nor {KINETICS[part][1]}; put one there or give a "
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
        raise UserError(f"'{names_file}' names {len(names)} classes, but Kinetics-400 has 400")
    return _load("kinetics400", options, lists[0], lists[1], roots, names)


def load_video(options: DataOptions) -> VideoData:
    """Any lists: --train_list and --test_list, train.txt and test.txt in the data folder by default."""
    named = (options.video.train_list, options.video.test_list)
    paths = [Path(given or options.root / f"{part}.txt") for part, given in zip(("train", "test"), named, strict=True)]
    return _load("video", options, paths[0], paths[1], [options.root] * 2, None)


def _load(
    name: str, options: DataOptions, train_list: Path, test_list: Path, roots: Sequence[Path], classes: list[str] | None
) -> VideoData:
    cfg = options.video
    train = read_entries(train_list, roots[0], cfg.frame_template)
    evaluated_on = "test"
    if options.val_fraction:
        rest, held = hold_out(torch.tensor([e.label for e in train]), options.val_fraction, "clip")
        train, test = ([train[i] for i in part.tolist()] for part in (rest, held))
        evaluated_on = f"held-out {options.val_fraction:g} of train"
    else:
        test = read_entries(test_list, roots[1], cfg.frame_template)
    if classes is None:
        classes = [str(i) for i in range(1 + max(e.label for e in train))]
    check_labels([*train, *test], len(classes))
    if odd := describe_oddities(train, test, len(classes)):
        log.info("lists of %s: %s", name, odd)
    if options.few_ratio < 1:
        kept = few(torch.tensor([e.label for e in train]), options.few_ratio, options.seed, "clip")
        train = [train[i] for i in kept.tolist()]
    size = options.image_size or SIDE
    short_side = cfg.short_side or round(size * SHORT_SIDE / SIDE)
    if short_side < size:
        raise UserError(
            f"--short_side {short_side} is less than --image_size {size}, the crop of it: raise --short_side"
        )
    settings = ClipSettings(
        num_segments=options.recordings.num_segments,
        size=size,
        short_side=short_side,
        sampling=cfg.sampling,
        train_crop=cfg.train_crop,
        flip=not cfg.no_flip,
        pairs=ct.flip_pairs(cfg.flip_pairs),
    )
    cache = None if cfg.frame_cache is None else Path(cfg.frame_cache)
    reader = FrameReader(short_side, cache, cfg.seek, cfg.decoder)
    if not options.stream.skip_corrupt:
        require_files([*train, *test])
    return VideoData(name, classes, train, test, settings, reader, options, evaluated_on)
