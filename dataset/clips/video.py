"""Videos by list: `--dataset kinetics400`, and `--dataset video` for any set in the same list formats.

A line is `PATH LABEL` (a video file), `FOLDER FRAMES LABEL` (images extracted from one) or `FOLDER OFFSET FRAMES
LABEL`; paths are relative to the data folder, labels count from 0. kinetics400 looks for the published names.
Shape letters: B clips, V views of a clip in evaluation, T frames, S pixels of a side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.files import read_text
from core.log import log
from core.protocols import Batch, Batching, DataSet, UserError
from dataset.base import DataOptions, VideoConfig, few, hold_out
from dataset.clips import clip_transforms as ct
from dataset.clips.frame_reader import FrameReader
from dataset.clips.lists import Entry, check_labels, describe_oddities, read_entries, require_files, videos_below
from dataset.clips.views import SHORT_SIDE, SIDE, ClipSettings, TestViews
from dataset.order import Place, Plan, in_order
from dataset.workers import Decoded, WorkedLoader

LISTS = ("train_list", "test_list")  # files that say which clips there are
FOUND_BY = ("frame_template", "decoder")  # how their frames are read

LARGEST_TEST_BATCH = 32  # clips; a clip of eight frames takes 5 MB as float

KINETICS = {
    part: (f"kinetics400_{part}_list_videos.txt", f"kinetics400_{part}_list_rawframes.txt") for part in ("train", "val")
}


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
    ):
        self.name, self.classes, self.train, self.test = name, tuple(classes), list(train), list(test)
        self.settings, self.reader = settings, reader
        self.options, self.evaluated_on = options, options.evaluated_on("test")
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

    def digest_of(self, part: str) -> str:
        """Checksum of names, sizes, labels and settings; the pixels of a large set are not all read."""
        digest = hashlib.sha256(repr(self.settings).encode())
        if self.reader.decoder != "av":
            digest.update(self.reader.decoder.encode())
        for e in self.train if part == "train" else self.test:
            size = e.source.path.stat().st_size if e.source.path.is_file() else e.source.count
            digest.update(f"{e.source.path.name} {size} {e.label}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    def train_view(self, position: int, seeds: Sequence[int]) -> tuple[Tensor, int]:
        return self.settings.train_view(self.reader, self.train[position], np.random.default_rng(seeds))

    def views(self, chosen: TestViews, position: int, _: None) -> tuple[Tensor, int]:
        return self.settings.test_views(self.reader, self.test[position], chosen)

    def shuffled(self, batching: Batching, device: torch.device) -> WorkedLoader:
        plan, skip = Plan(len(self.train), batching, what="clips"), self.options.stream.skip_corrupt

        def places(epoch: int, start: int) -> list[list[Place]]:
            order, steps = plan.order(epoch).tolist(), range(start, plan.steps)
            return [[(order[at], (batching.seed, epoch, at)) for at in plan.places_of(step)] for step in steps]

        samples = Decoded(self.train_view, len(self.train), "clips", skip, replace=skip)
        return WorkedLoader(samples, plan.steps, places, partial(self._batch, 1), device, self.options.num_workers)

    def test_loader(
        self,
        batch_size: int,
        *,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        views: TestViews | None = None,
    ) -> WorkedLoader:
        """One view per clip, or `views`: batches then hold B * V clips. Every rank has its own exact slice."""
        chosen = views or TestViews()
        self.settings.check(chosen)
        size = max(1, min(batch_size, LARGEST_TEST_BATCH) // chosen.count)
        plan = [[(i, None) for i in part] for part in in_order(len(self.test), size, rank, world_size)]

        samples = Decoded(
            partial(self.views, chosen), len(self.test), "clips", self.options.stream.skip_corrupt, replace=False
        )
        finish = partial(self._batch, chosen.count)
        return WorkedLoader(
            samples, len(plan), lambda epoch, start: plan[start:], finish, device, self.options.num_workers
        )

    def _batch(self, views: int, clips: Tensor, labels: Tensor, positions: Tensor) -> Batch:
        """Of uint8 [B, V * T, C, S, S]."""
        video = clips.unflatten(1, (views, self.settings.num_segments)).flatten(0, 1)  # [B * V, T, C, S, S]
        return Batch({"video": ct.scaled(video)}, labels, positions, views=views)


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
    classes = read_text(names_file, "list of classes").splitlines() if names_file.is_file() else []
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
    if options.val_fraction:
        rest, held = hold_out(torch.tensor([e.label for e in train]), options.val_fraction, "clip")
        train, test = ([train[i] for i in part.tolist()] for part in (rest, held))
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
    return VideoData(name, classes, train, test, settings, reader, options)
