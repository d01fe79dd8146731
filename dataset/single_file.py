"""One image, video or sensor recording as the input of a network, without a data set.

Shape letters: C channels or axes, T frames, S pixels of a side, L samples of a window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.protocols import UserError
from dataset.clips.clip_transforms import centre_box, render, to_input
from dataset.clips.decode import ClipSource, read_clip
from dataset.clips.frame_reader import FrameReader
from dataset.clips.frame_sampling import segment_frames
from dataset.clips.lists import VIDEOS, Entry
from dataset.clips.views import ClipSettings, TestViews
from dataset.images.files import EXTENSIONS, scaled
from dataset.images.folder import decode
from dataset.recordings.sensors import MODALITIES, read_sensor, window

WIDER = 256 / 224  # ratio of the shorter side of an ImageNet image or a frame to the side of its centre crop
ENDINGS = {"image": EXTENSIONS, "video": VIDEOS, "sensor": frozenset({".mat", ".txt", ".csv"})}


@dataclass(frozen=True)
class InputFormat:
    """How a file becomes the input of a network, as in the evaluation of its data set.

    kind: image, video or sensor. shape: of the input, without the batch. short_side: size of the shorter side of an
    image or frame before the centre crop. sampling: of frames: uniform or dense for listed videos, segments for action
    recordings. modality: of an action recording, such as accel.
    """

    kind: str
    shape: tuple[int, ...]
    short_side: int | None = None
    sampling: str = "uniform"
    modality: str | None = None

    @classmethod
    def of(cls, kind: str, shape: tuple[int, ...], meta: Mapping[str, Any]) -> InputFormat:
        """Built from a checkpoint's record of its data set."""
        side, modality = shape[-1], meta.get("modalities", {}).get(kind)
        wider = int(side * WIDER + 1e-9)
        if kind == "image":
            return cls(kind, shape, wider if meta.get("dataset") == "imagenet" else side)
        if kind == "sensor":
            return cls(kind, shape, modality=modality)
        if modality is not None:
            return cls(kind, shape, max(1, wider), "segments", modality)
        return cls(kind, shape, meta.get("short_side") or round(side * WIDER), meta.get("sampling") or "uniform")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InputFormat:
        return cls(**{**values, "shape": tuple(values["shape"])})

    def as_dict(self) -> dict[str, Any]:
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}

    @property
    def endings(self) -> frozenset[str]:
        """Extensions of the files to find in a folder."""
        return ENDINGS[self.kind]

    def read(self, path: str | Path) -> Tensor:
        """float32 of `shape`: a picture [C, S, S] or a clip [T, C, S, S] in [0, 1], a sensor window [C, L]. UserError
        if the file does not fit the network."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"there is no file '{path}'")
        if self.kind == "image":
            return self._image(path)
        return self._sensor(path) if self.kind == "sensor" else self._video(path)

    def _image(self, path: Path) -> Tensor:
        pixels = decode(path, self.shape[-1], self.short_side)
        return scaled(torch.from_numpy(pixels.copy())[None])[0]

    def _sensor(self, path: Path) -> Tensor:
        values = window(read_sensor(path, self.modality or next(iter(MODALITIES))), self.shape[1])
        if len(values) != self.shape[0]:
            raise UserError(f"'{path}' has {len(values)} axes, but the network reads {self.shape[0]}")
        return values

    def _video(self, path: Path) -> Tensor:
        frames, side = self.shape[0], self.shape[-1]
        assert self.short_side is not None
        if self.sampling == "segments":
            clip = read_clip(ClipSource(path), self.short_side)
            picked = segment_frames(len(clip), frames)
            area = centre_box(clip.shape[1], clip.shape[2], side)
            return to_input([render(clip, picked, area, side)], torch.device("cpu"))[0]
        settings = ClipSettings(frames, side, self.short_side, self.sampling)
        pixels, _ = settings.test_views(
            FrameReader(self.short_side), Entry(ClipSource(path), 0, str(path)), TestViews()
        )
        return to_input([pixels], torch.device("cpu"))[0]
