"""Crops and flips of clips uint8 [T, C, H, W], one draw for all frames, as in the published TSN and TSM configurations.

Resizing is bilinear without antialiasing, as in OpenCV: it agrees with OpenCV within one grey level. Antialiasing
would differ by two to four levels on average and cost published checkpoints accuracy. A box is
(top, left, height, width).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from core.protocols import UserError

Box = tuple[int, int, int, int]
SCALES = (1.0, 0.875, 0.75, 0.66)
CORNERS_AND_CENTRE = ((0, 0), (4, 0), (0, 4), (4, 4), (2, 2))  # (column, row) on a grid of quarters
THIRTEEN = (*CORNERS_AND_CENTRE, (0, 2), (4, 2), (2, 4), (2, 0), (1, 1), (3, 1), (1, 3), (3, 3))
SNAP = 3  # px


def resize(clip: Tensor, height: int, width: int) -> Tensor:
    """uint8 [T, C, H, W] -> [T, C, height, width], bilinear, no antialiasing."""
    if clip.shape[-2:] == (height, width):
        return clip
    from torchvision.transforms.v2 import functional as v2

    return v2.resize(clip, [height, width], antialias=False)


def short_side_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """The size whose shorter side is `short_side`: int(x * scale + 0.5) on both, as OpenMMLab rounds."""
    scale = short_side / min(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def multiscale_sizes(height: int, width: int, size: int | None = None) -> list[tuple[int, int]]:
    """(width, height) of the ten candidates: sides of SCALES, combined with themselves or a neighbour.

    size: of the network's input; a side within SNAP of it becomes equal to it.
    """
    sides = [int(min(height, width) * scale) for scale in SCALES]
    if size is not None:
        sides = [size if abs(side - size) < SNAP else side for side in sides]
    return [(w, h) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]


def multiscale_crop(height: int, width: int, size: int, places: int, rng: np.random.Generator) -> Box:
    """MultiScaleCrop of TSN (5 places: corners and centre) and TSM (13)."""
    candidates = multiscale_sizes(height, width, size)
    w, h = candidates[rng.integers(len(candidates))]
    grid = THIRTEEN if places == len(THIRTEEN) else CORNERS_AND_CENTRE
    return crop_at(height, width, h, w, grid[rng.integers(len(grid))])


def crop_at(height: int, width: int, h: int, w: int, place: tuple[int, int]) -> Box:
    """The h x w box at (column, row) of a grid of quarters."""
    column, row = place
    return row * ((height - h) // 4), column * ((width - w) // 4), h, w


def random_resized_crop(height: int, width: int, rng: np.random.Generator) -> Box:
    """8 to 100 % of the area, aspect log-uniform in 3/4 to 4/3, ten attempts, then the central square."""
    for _ in range(10):
        area = rng.uniform(0.08, 1.0) * height * width
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = int(round(np.sqrt(area * aspect))), int(round(np.sqrt(area / aspect)))
        if w <= width and h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return centre_box(height, width, min(height, width))


def three_crops(height: int, width: int, size: int) -> list[Box]:
    """Both ends and the middle of the longer side, in this order; UserError unless the crop has the shorter side."""
    if size != min(height, width):
        raise UserError(
            f"three crops of {size} px need frames whose shorter side is {size}, but it is {min(height, width)}: "
            f"use --crop_size {min(height, width)}, as published, or --short_side {size}"
        )
    down, right = (height - size) // 2, (width - size) // 2  # one of them is 0
    return [(k * down, k * right, size, size) for k in (0, 2, 1)]


def ten_crops(height: int, width: int, size: int) -> list[tuple[Box, bool]]:
    """(box, mirrored): upper left, upper right, lower left, lower right, centre; each one plain, then mirrored."""
    if size > min(height, width):
        raise UserError(
            f"ten crops of {size} px do not fit frames of {width}x{height}: use --short_side {size} or more"
        )
    boxes = [crop_at(height, width, size, size, place) for place in CORNERS_AND_CENTRE]
    return [(box, mirrored) for box in boxes for mirrored in (False, True)]


def crop(clip: Tensor, box: Box) -> Tensor:
    top, left, height, width = box
    return clip[..., top : top + height, left : left + width]


def mirrored(clip: Tensor, label: int, pairs: Mapping[int, int]) -> tuple[Tensor, int]:
    """The mirrored clip and its label: classes that name a side are exchanged."""
    return clip.flip(-1), pairs.get(label, label)


def flip_pairs(text: str) -> dict[int, int]:
    """'86:87,93:94' -> {86: 87, 87: 86, 93: 94, 94: 93}."""
    pairs: dict[int, int] = {}
    for part in filter(None, text.split(",")):
        try:
            a, b = (int(x) for x in part.split(":"))
        except ValueError:
            raise UserError(f"--flip_pairs '{text}' must have the form CLASS:CLASS,..., such as 86:87,93:94") from None
        if a == b or a in pairs or b in pairs:
            raise UserError(
                f"--flip_pairs '{text}' names class {a if a in pairs or a == b else b} twice: name each class once"
            )
        pairs |= {a: b, b: a}
    return pairs


def as_clip(frames: np.ndarray) -> Tensor:
    """uint8 [T, h, w, C] -> [T, C, h, w], a view."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def crop_boxes(height: int, width: int) -> list[Box]:
    """TSN's multi-scale corner crops: every pair of sides at each of 13 fixed places, without repetitions."""
    boxes = (crop_at(height, width, h, w, place) for w, h in multiscale_sizes(height, width) for place in THIRTEEN)
    return list(dict.fromkeys(boxes))


def centre_box(height: int, width: int, side: int) -> Box:
    """The central square of `side` pixels, or of the shorter side if that is less."""
    side = min(side, height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def render(clip: np.ndarray, frames: Sequence[int], box: Box, size: int, mirror: bool = False) -> Tensor:
    """Frames of a clip, all cropped at the same box and resized (bilinear, antialiased): uint8 [K, C, size, size]."""
    from torchvision.transforms.v2 import functional as v2

    top, left, height, width = box
    out = as_clip(np.stack([clip[i, top : top + height, left : left + width] for i in frames]))
    if (height, width) != (size, size):
        out = v2.resize(out, [size, size], antialias=True)
    return out.flip(-1) if mirror else out


def to_input(clips: Sequence[Tensor], device: torch.device) -> Tensor:
    """Clips uint8 [K, C, S, S] -> float32 [B, K, 3, S, S] in [0, 1] on the device; grey clips get three channels."""
    stacked = torch.stack(torch.broadcast_tensors(*clips))
    if device.type == "cuda":
        stacked = stacked.pin_memory().to(device, non_blocking=True)
    return scaled(stacked)


def scaled(clips: Tensor) -> Tensor:
    """uint8 [B, T, C, S, S] -> float32 [B, T, 3, S, S] in [0, 1]."""
    return (clips.float() / 255).expand(-1, -1, 3, -1, -1)
