"""How clips are prepared, and which views of a clip evaluation averages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.protocols import UserError
from dataset.clips import clip_transforms as ct
from dataset.clips.frame_reader import FrameReader
from dataset.clips.frame_sampling import dense_frames, sample_frames
from dataset.clips.lists import Entry

SIDE = 224
SHORT_SIDE = 256  # for a crop of 224


@dataclass(frozen=True)
class ClipSettings:
    """How a clip becomes a network's input.

    train_crop: multiscale13 (TSM) or multiscale5 (TSN): MultiScaleCrop with 13 or 5 positions; resized:
    RandomResizedCrop; centre: none. flip: whether half of the clips are mirrored; pairs: classes to exchange then.
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
        sample = dense_frames if self.sampling == "dense" else sample_frames
        index = sample(reader.count(entry.source), self.num_segments, rng)
        clip = ct.as_clip(reader.read(entry.source, index.tolist()))
        height, width = clip.shape[-2:]
        if self.train_crop.startswith("multiscale"):
            box = ct.multiscale_crop(height, width, self.size, 13 if self.train_crop.endswith("13") else 5, rng)
        elif self.train_crop == "resized":
            box = ct.random_resized_crop(height, width, rng)
        else:
            box = ct.centre_box(height, width, self.size)
        clip = ct.resize(ct.crop(clip, box), self.size, self.size)
        label = entry.label
        if self.flip and rng.random() < 0.5:
            clip, label = ct.mirrored(clip, label, self.pairs or {})
        return clip, label

    def check(self, views: TestViews) -> None:
        """UserError for impossible settings."""
        if views.clips < 1:
            raise UserError(f"--clips {views.clips} must be at least 1")
        if self.sampling != "dense" and views.clips > 2:
            raise UserError(
                f"--clips {views.clips} needs --sampling dense: uniform sampling gives 1 clip, or 2 with other frames"
            )
        size = views.size or self.size
        if views.crops == "three":
            ct.three_crops(self.short_side, self.short_side, size)
        elif views.crops == "ten":
            ct.ten_crops(self.short_side, self.short_side, size)

    def test_views(self, reader: FrameReader, entry: Entry, views: TestViews) -> tuple[Tensor, int]:
        """(uint8 [V * T, C, S, S], label): clips in turn, and of each clip its crops."""
        n, t = reader.count(entry.source), self.num_segments
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
            boxes = [(ct.centre_box(height, width, size), False)]
        parts = []
        for frames in clip.split(t):
            for box, is_mirrored in boxes:
                part = ct.resize(ct.crop(frames, box), size, size)
                parts.append(part.flip(-1) if is_mirrored else part)
        return torch.cat(parts), entry.label


@dataclass(frozen=True)
class TestViews:
    """The views of a clip in evaluation.

    clips: uniform sampling has one or two (the published twice_sample: the middles of the segments, then their starts);
    dense sampling has this many starts. crops: one, three or ten. size: None: as in training.
    """

    __test__ = False

    clips: int = 1
    crops: str = "one"
    size: int | None = None

    @property
    def count(self) -> int:
        return self.clips * {"one": 1, "three": 3, "ten": 10}[self.crops]
