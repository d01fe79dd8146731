"""Random views of a batch on the device: colour, crop, rotation, hidden patches; no copy, no sync.

The multi-view generator of cross-architecture distillation (Liu et al., ACCV 2022). The paper names the transformations
but not their ranges, which are this project's choice. Images are float in [0, 1], [B, C, H, W], with separate draws.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.images.randaugment import grey

JITTER = 0.4  # brightness, contrast and saturation are multiplied by 1 -+ this
SMALLEST_CROP = 0.75  # side of the crop, as a share of the image's side
ROTATION = math.radians(15)  # to either side
HIDDEN = 0.1  # share of the patches that are set to black
PATCHES = 14  # patches per side, or fewer, so that each has at least two pixels


def multi_view(x: Tensor, rng: torch.Generator, share: float = 0.5) -> Tensor:
    """Every image is transformed with probability `share`, and otherwise kept bit for bit."""
    chosen = _draw(x, rng, 0.0, 1.0) < share
    view = _hide(_move(_colour(x, rng), rng), rng)
    return torch.where(chosen, view, x).contiguous(memory_format=torch.channels_last)


def _draw(x: Tensor, rng: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Uniform draws, one per image, [B, 1, 1, 1], or another shape after B."""
    shape = shape or (1, 1, 1)
    return torch.rand(len(x), *shape, generator=rng, device=x.device, dtype=x.dtype) * (high - low) + low


def _colour(x: Tensor, rng: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation, in this order."""
    brightness, contrast, saturation = (_draw(x, rng, 1 - JITTER, 1 + JITTER) for _ in range(3))
    x = (x * brightness).clamp(0, 1)
    mean = grey(x).mean((2, 3), keepdim=True)
    x = (mean + (x - mean) * contrast).clamp(0, 1)
    colourless = grey(x)
    return (colourless + (x - colourless) * saturation).clamp(0, 1)


def _move(x: Tensor, rng: torch.Generator) -> Tensor:
    """A rotated crop, resized to the image's size in one bilinear gather; the border is mirrored."""
    height, width = x.shape[2:]
    angle, scale, right, down = (
        _draw(x, rng, low, high).flatten()
        for low, high in ((-ROTATION, ROTATION), (SMALLEST_CROP, 1.0), (-1.0, 1.0), (-1.0, 1.0))
    )
    cos, sin = scale * angle.cos(), scale * angle.sin()
    # the inverse map, in coordinates from -1 to 1 on either axis
    theta = torch.stack(
        [
            torch.stack([cos, -sin * height / width, right * (1 - scale)], 1),
            torch.stack([sin * width / height, cos, down * (1 - scale)], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _hide(x: Tensor, rng: torch.Generator) -> Tensor:
    height, width = x.shape[2:]
    rows, columns = min(PATCHES, max(height // 2, 1)), min(PATCHES, max(width // 2, 1))
    kept = (_draw(x, rng, 0.0, 1.0, 1, rows, columns) >= HIDDEN).to(x.dtype)
    return x * F.interpolate(kept, (height, width), mode="nearest")
