"""Action recordings of several modalities: pairs by (action, subject, trial), their protocols, and their loaders.

A data set module defines the files and the meaning of their names; everything else is here. Shape letters: N
samples, B samples of a batch, K frames of a clip, C axes, L samples of a window, S pixels.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from core.machine import usable_cores
from core.protocols import Batch, Batching, DataSet, Loader, UserError
from dataset.base import DataOptions
from dataset.clips.clip_transforms import centre_box, crop_boxes, render, to_input
from dataset.clips.frame_cache import FrameCache
from dataset.clips.frame_sampling import segment_frames
from dataset.order import InOrder, Plan, generator, in_order
from dataset.recordings.pairs import SENSOR, VIDEO, Layout, Sample, check_split, pair
from dataset.recordings.sensors import read_sensor, window

DEFAULT_SIDE = 224
AHEAD = 2  # batches that threads prepare on a GPU


class OnDemand(Mapping[str, Tensor]):
    """Inputs of a batch that are prepared when they are read: a student that reads the sensor decodes no video and
    needs none."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]):
        self._makers, self._made = makers, dict[str, Tensor]()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


@dataclass(eq=False)
class ActionData(DataSet):
    """Paired recordings with labels: a DataSet (core.protocols).

    Sensor windows are resident on the device, clips come from the cache of decoded frames. reads: modality name ->
    entry of Batch.inputs. num_segments, side: of clips; length: of windows. notes: sentences that the run prints once.
    """

    layout: Layout
    protocol: str
    train: list[Sample]
    test: list[Sample]
    reads: Mapping[str, str]
    num_segments: int
    side: int
    length: int
    cache: FrameCache
    evaluated_on: str
    notes: Sequence[str] = ()
    _windows: dict[str, Tensor] = field(default_factory=dict)

    num_crops: int | None = None  # crops have many sizes and positions

    def __post_init__(self) -> None:
        self.name, self.classes = self.layout.name, tuple(self.layout.classes)
        self.train_labels = torch.tensor([s.label for s in self.train], dtype=torch.int64)
        self.test_labels = torch.tensor([s.label for s in self.test], dtype=torch.int64)
        shapes = {}
        for modality, entry in self.reads.items():
            axes = self.layout.modalities[modality].axes
            clip = (self.num_segments, 3, self.side, self.side)
            shapes[entry] = clip if entry == VIDEO else (axes, self.length)
        self.shapes: Mapping[str, tuple[int, ...]] = shapes
        self.modality_of = {entry: modality for modality, entry in self.reads.items()}

    @property
    def described(self) -> dict[str, object]:
        """Entries of a checkpoint's meta with which its network can read single files."""
        shapes = {entry: list(shape) for entry, shape in self.shapes.items()}
        return {
            "classes": list(self.classes),
            "modalities": dict(self.modality_of),
            "shapes": shapes,
            "reads": next(iter(self.reads.values())),
            "data_split": self.protocol,
        }

    def digest_of(self, part: str) -> str:
        """First 16 hex digits of the SHA-256 of shapes, keys, labels, sensor values and the sizes of the videos."""
        digest = hashlib.sha256(repr((sorted(self.shapes.items()), self.protocol)).encode())
        for s in self.train if part == "train" else self.test:
            sizes = [
                (m, r.path.stat().st_size if r.path.is_file() else r.frames and r.frames.count)
                for m, r in s.files.items()
                if self.reads[m] == VIDEO
            ]
            digest.update(repr((s.key, s.view, s.label, sizes)).encode())
        if SENSOR in self.shapes:
            digest.update(self.windows(part).numpy().data)
        return digest.hexdigest()[:16]

    def windows(self, part: str) -> Tensor:
        """float32 [N, C, L] on the CPU."""
        if part not in self._windows:
            modality, samples = self.modality_of[SENSOR], self.train if part == "train" else self.test
            rows = [window(read_sensor(s.files[modality].path, modality), self.length) for s in samples]
            self._windows[part] = torch.stack(rows)
        return self._windows[part]

    def clip(self, sample: Sample, draw: Sequence[float] | None, box: float | None, mirror: bool) -> Tensor:
        """uint8 [K, C, S, S]. draw: positions inside the segments; box: which crop, in [0, 1); None: the middle."""
        recording = sample.files.get(self.modality_of[VIDEO])
        if recording is None or recording.frames is None:
            raise UserError(
                f"{self.layout.describe_key(sample.key)} has no {self.modality_of[VIDEO]} recording, but the network "
                "reads one: evaluate a network that reads the sensor (--skip_validation skips the teacher)"
            )
        frames = self.cache.get(recording.frames)
        picked = segment_frames(len(frames), self.num_segments, draw)
        height, width = frames.shape[1:3]
        if box is None:
            area = centre_box(height, width, self.side)
        else:
            boxes = crop_boxes(height, width)
            area = boxes[int(box * len(boxes))]
        chosen = self.cache.frames(recording.frames, picked)
        mirror = mirror and sample.label in self.layout.mirrored
        return render(chosen, range(len(picked)), area, self.side, mirror)

    def shuffled(self, batching: Batching, device: torch.device) -> ActionTrainLoader:
        plan = Plan(len(self.train), batching, what="recordings")
        return ActionTrainLoader(self, plan, device)

    def test_loader(self, batch_size: int, *, device: torch.device, rank: int = 0, world_size: int = 1) -> InOrder:
        """The middle frame of every segment, the centre crop. batch_size counts the samples of this rank; inputs are
        prepared when they are read."""
        labels = self.test_labels.to(device)
        windows = self.windows("test").to(device) if SENSOR in self.shapes else None

        def batch(part: range) -> Batch:
            makers: dict[str, Callable[[], Tensor]] = {}
            if VIDEO in self.shapes:
                makers[VIDEO] = lambda: to_input([self.clip(self.test[i], None, None, False) for i in part], device)
            if windows is not None:
                makers[SENSOR] = lambda: windows[part.start : part.stop]
            places = torch.arange(part.start, part.stop, device=device)
            return Batch(OnDemand(makers), labels[part.start : part.stop], places)

        size = min(batch_size, 32) if VIDEO in self.shapes else batch_size  # clips are large
        return InOrder(in_order(len(self.test), size, rank, world_size), batch)


class ActionTrainLoader(Loader):
    """Batches of pairs. The order depends on (seed, epoch), frames and crops on (seed, epoch, place in the epoch).

    On a GPU, threads prepare the next batches while the device works on this one.
    """

    def __init__(self, data: ActionData, plan: Plan, device: torch.device):
        super().__init__(plan.steps)
        self.data, self.plan, self.device = data, plan, device
        self.labels = data.train_labels.to(device)
        self.windows = data.windows("train").to(device) if SENSOR in data.shapes else None
        self.set_epoch(1)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        super().set_epoch(epoch, start_step)
        self.order = self.plan.order(epoch)
        numbers = self.data.num_segments + 2
        draws = torch.rand(self.plan.count, numbers, generator=generator("clip", self.plan.batching.seed, epoch))
        self.draws = draws.tolist()

    def clip(self, place: int) -> Tensor:
        """The clip at a position of the epoch, on the CPU."""
        *draw, box, mirror = self.draws[place]
        return self.data.clip(self.data.train[int(self.order[place])], draw, box, mirror < 0.5)

    def batch(self, step: int, clips: Sequence[Tensor] | None = None) -> Batch:
        places = self.plan.places_of(step)
        index = self.order[places.start : places.stop].to(self.device)
        inputs = {}
        if VIDEO in self.data.shapes:
            inputs[VIDEO] = to_input([self.clip(p) for p in places] if clips is None else clips, self.device)
        if self.windows is not None:
            inputs[SENSOR] = self.windows.index_select(0, index)
        return Batch(inputs, self.labels.index_select(0, index), index)

    def batches(self, start: int) -> Iterator[Batch]:
        if self.device.type != "cuda" or VIDEO not in self.data.shapes:
            return super().batches(start)
        return self.ahead(start, max(1, usable_cores() - 1))

    def ahead(self, start: int, threads: int) -> Iterator[Batch]:
        """The same batches; threads prepare their clips while the device works on earlier ones."""
        with ThreadPoolExecutor(threads) as pool:

            def ask(step: int) -> list[Future[Tensor]]:
                return (
                    [pool.submit(self.clip, place) for place in self.plan.places_of(step)] if step < self.steps else []
                )

            asked = deque(ask(start + i) for i in range(AHEAD))
            try:
                for step in range(start, self.steps):
                    clips = [future.result() for future in asked.popleft()]
                    asked.append(ask(step + AHEAD))
                    yield self.batch(step, clips)
            finally:  # the caller may stop within an epoch
                pool.shutdown(cancel_futures=True)


def load(layout: Layout, options: DataOptions) -> ActionData:
    """Find, pair, split and check the recordings of a data set, and decode its clips into the cache."""
    if not options.root.is_dir():
        raise UserError(f"the data folder '{options.root}' does not exist; point --data_folder at {layout.name}")
    if options.val_fraction or options.few_ratio < 1:
        raise UserError(f"{layout.name} is split by subject or trial: leave --val_fraction and --few_ratio out")
    wanted = options.modality or (next(iter(layout.modalities)),)
    for name in wanted:
        if name not in layout.modalities:
            raise UserError(f"{layout.name} has no modality '{name}': choose {', '.join(layout.modalities)}")
    entries = {name: layout.modalities[name].kind for name in wanted}
    if len(set(entries.values())) < len(entries):
        first, second = list(entries)[:2]
        raise UserError(
            f"{first} and {second} are both read as '{entries[first]}', so teacher and student would read the same "
            "input: choose one of them, or a video and a sensor"
        )
    split = options.recordings.data_split or next(iter(layout.protocols))
    if split not in layout.protocols:
        raise UserError(f"{layout.name} has no split '{split}': choose {', '.join(layout.protocols)}")
    protocol = layout.protocols[split]
    if protocol.by_view and entries[wanted[0]] == SENSOR:
        raise UserError(
            f"--data_split {split} separates the cameras of one performance, so its sensor recording would be trained "
            "and tested on: choose another split for a network that reads a sensor"
        )
    found = {name: layout.find(options.root, name) for name in wanted}
    for name, recordings in found.items():
        if not recordings:
            raise UserError(f"'{options.root}' holds no {name} recordings of {layout.name}")
    samples, left_out = pair(found, wanted[0], options.stream.skip_corrupt, protocol.trains)
    cfg = options.recordings
    side, length = options.image_size or DEFAULT_SIDE, cfg.window or DEFAULT_SIDE
    cache = FrameCache(None if cfg.clip_cache is None else Path(cfg.clip_cache), max(1, side * 256 // 224))
    samples, notes = _readable(samples, entries, cache, cfg.num_segments, options.stream.skip_corrupt, left_out)
    sides: dict[bool, list[Sample]] = {True: [], False: []}
    for s in samples:
        sides[protocol.trains(s.files[wanted[0]])].append(s)
    check_split(sides[True], sides[False], protocol, split)
    if entries[wanted[0]] == SENSOR:  # several cameras recorded a performance; its sensor recording is tested once
        sides[False] = list({s.key: s for s in reversed(sides[False])}.values())[::-1]
    origins = [
        f"{name} is {', '.join(sorted(kinds))}"
        for name, recordings in found.items()
        if (kinds := {r.origin for r in recordings if r.origin})
    ]
    summary = "; ".join([f"{protocol.summary}, {'+'.join(wanted)}", *origins])
    notes = [
        f"{layout.name}: {len(sides[True])} recordings to train on, {len(sides[False])} to test; {summary}",
        *notes,
    ]
    sizes = (cfg.num_segments, side, length)
    return ActionData(layout, split, sides[True], sides[False], entries, *sizes, cache, summary, notes)


def _readable(
    samples: Sequence[Sample],
    entries: Mapping[str, str],
    cache: FrameCache,
    num_segments: int,
    skip_corrupt: bool,
    left_out: Sequence[str],
) -> tuple[list[Sample], list[str]]:
    """Decode all clips into the cache and read all sensor files. With --skip_corrupt, recordings that cannot be read or
    have too few frames are left out."""
    bad: dict[Path, str] = {}
    notes = []
    for name, entry in entries.items():
        recordings = [s.files[name] for s in samples if name in s.files]
        if entry == SENSOR and skip_corrupt:
            for r in recordings:
                try:
                    read_sensor(r.path, name)
                except UserError as error:
                    bad[r.path] = str(error)
        if entry == VIDEO:
            sources = list(dict.fromkeys(r.frames for r in recordings if r.frames is not None))
            size = cache.fill(sources, bad if skip_corrupt else None, num_segments)
            where = f"in '{cache.folder}'" if cache.folder else "in memory"
            notes.append(
                f"decoded frames of {len(sources)} clips, {cache.short_side} px: {size / 2**20:.0f} MiB {where}"
            )
    kept = [s for s in samples if not any(r.path in bad for r in s.files.values())]
    gone = [*left_out, *bad.values()]
    if gone:
        notes.append(f"left out {len(samples) - len(kept) + len(left_out)} recordings; the first reason: {gone[0]}")
    return kept, notes
