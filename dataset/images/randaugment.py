"""RandAugment (Cubuk et al., NeurIPS 2020) on a batch on the device: no sync, no loop over images.

The paper's fourteen operations and ranges, drawn separately for every image. Images are float in [0, 1], [B, 3, H, W].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 30  # magnitudes are counted from 0 to this
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")

OPERATIONS = (
    "identity",
    *GEOMETRIC,
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)

TRANSLATION = 150 / 331  # share of the image's side, at the highest magnitude
CUTOUT = (125, 123, 114)  # red, green and blue of the cut-out square, from 0 to 255
GREY = (0.299, 0.587, 0.114)


def rand_augment(x: Tensor, rng: torch.Generator, num_ops: int = 2, magnitude: int | None = 10) -> Tensor:
    """num_ops operations in a row for every image, each drawn uniformly, with a random sign.

    magnitude: None: drawn uniformly for every image and operation.
    """
    for _ in range(num_ops):
        operation = torch.randint(len(OPERATIONS), (len(x),), generator=rng, device=x.device)
        sign = torch.randint(2, (len(x),), generator=rng, device=x.device) * 2.0 - 1.0
        strength = magnitude / LEVELS if magnitude is not None else torch.rand(len(x), generator=rng, device=x.device)
        x = augment(x, operation, sign.to(x.dtype), strength)
    return x


def augment(x: Tensor, operation: Tensor, sign: Tensor, strength: float | Tensor) -> Tensor:
    """operation: [B] index into OPERATIONS. sign: [B] of +-1. strength: magnitude as a share of the highest; one
    number, or [B]."""
    sign = sign[:, None, None, None]
    each = strength[:, None, None, None] if isinstance(strength, Tensor) else strength
    lost = (4 * each).round() if isinstance(each, Tensor) else round(4 * each)
    candidates = {
        "brightness": _blend(torch.zeros_like(x), x, 1 + 0.9 * each * sign),
        "color": _blend(grey(x).expand_as(x), x, 1 + 0.9 * each * sign),
        "contrast": _blend(grey(x).mean((1, 2, 3), keepdim=True).expand_as(x), x, 1 + 0.9 * each * sign),
        "sharpness": _blend(_smooth(x), x, 1 + 0.9 * each * sign),
        "posterize": _posterize(x, lost),
        "solarize": torch.where(x >= 1 - each, 1 - x, x),
        "autocontrast": _autocontrast(x),
        "equalize": _equalize(x),
    }
    out = x
    for name, candidate in candidates.items():
        out = torch.where((operation == OPERATIONS.index(name))[:, None, None, None], candidate, out)
    moved = _move(x, operation, sign.flatten(), strength)
    first, last = OPERATIONS.index(GEOMETRIC[0]), OPERATIONS.index(GEOMETRIC[-1])
    geometric = (operation >= first) & (operation <= last)
    return torch.where(geometric[:, None, None, None], moved, out)


def _move(x: Tensor, operation: Tensor, sign: Tensor, strength: float | Tensor) -> Tensor:
    """The geometric operations as one nearest-neighbour gather; pixels from outside the image are black."""
    height, width = x.shape[2:]

    def where(name: str, value: Tensor) -> Tensor:
        return torch.where(operation == OPERATIONS.index(name), value, torch.zeros_like(value))

    angle = where("rotate", sign * strength * math.radians(30))
    # rows of the inverse map, in coordinates from -1 to 1 on either axis
    skew_x = where("shear_x", sign * strength * 0.3) - angle.sin()
    skew_y = where("shear_y", sign * strength * 0.3) + angle.sin()
    shift_x = where("translate_x", sign * strength * 2 * TRANSLATION)
    shift_y = where("translate_y", sign * strength * 2 * TRANSLATION)
    theta = torch.stack(
        [
            torch.stack([angle.cos(), skew_x * height / width, shift_x], 1),
            torch.stack([skew_y * width / height, angle.cos(), shift_y], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def cutout(x: Tensor, rng: torch.Generator, largest: float = 0.5) -> Tensor:
    """A grey square around a random point of every image, its side drawn uniformly up to a share of the image's."""
    height, width = x.shape[2:]

    def draw(limit: float) -> Tensor:
        return torch.rand(len(x), 1, generator=rng, device=x.device) * limit

    half = draw(largest / 2)
    rows = (torch.arange(height, device=x.device) - draw(height)).abs() <= half * height  # [B, H]
    columns = (torch.arange(width, device=x.device) - draw(width)).abs() <= half * width
    hidden = rows[:, None, :, None] & columns[:, None, None, :]
    colours = [torch.where(hidden, value / 255, x[:, i : i + 1]) for i, value in enumerate(CUTOUT[: x.shape[1]])]
    return torch.cat(colours, 1)


def _blend(low: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    return (low + (x - low) * factor).clamp(0, 1)


def grey(x: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 1, H, W]."""
    if x.shape[1] != len(GREY):
        return x.mean(1, keepdim=True)
    return sum(w * x[:, i : i + 1] for i, w in enumerate(GREY))  # type: ignore[return-value]


def _smooth(x: Tensor) -> Tensor:
    """Each pixel averaged with its neighbours, its own weight 5 of 13; the border is unchanged."""
    inner = (9 * F.avg_pool2d(x, 3, stride=1) + 4 * x[:, :, 1:-1, 1:-1]) / 13
    out = x.clone()
    out[:, :, 1:-1, 1:-1] = inner
    return out


def _posterize(x: Tensor, lost: int | Tensor) -> Tensor:
    """Posterise: clear the lowest bits."""
    step = 2**lost
    return (x * 255).round().div(step, rounding_mode="floor") * step / 255


def _autocontrast(x: Tensor) -> Tensor:
    """Every channel stretched to [0, 1]; a constant channel is unchanged."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    spread = high - low
    return torch.where(spread > 0, (x - low) / spread.clamp_min(1e-6), x)


def _equalize(x: Tensor) -> Tensor:
    """Equalise: spread every channel's levels by their rank. Ranks come from sorting, which is deterministic on a GPU,
    unlike a histogram by scattered additions."""
    levels = (x * 255).round().flatten(2).contiguous()  # [B, C, H * W]
    ordered = levels.sort(2).values
    below = torch.searchsorted(ordered, levels).to(x.dtype)  # number of darker pixels
    darker_than_brightest = torch.searchsorted(ordered, ordered[:, :, -1:].contiguous()).to(x.dtype)
    step = (darker_than_brightest / 255).floor()
    spread = ((below + (step / 2).floor()) / step.clamp_min(1)).floor().clamp(max=255)
    return torch.where(step > 0, spread, levels).view_as(x) / 255
