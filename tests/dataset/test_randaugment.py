"""The batched RandAugment against torchvision's single operations, on images of whole levels."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import functional as tv

from dataset.images.randaugment import OPERATIONS, TRANSLATION, augment, rand_augment

B, SIDE = 6, 16


def images(seed: int = 0) -> torch.Tensor:
    """uint8 with a gradient in it, so that neither contrast nor equalisation has nothing to do."""
    noise = torch.randint(40, 160, (B, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))
    return (noise + 4 * torch.arange(SIDE)).to(torch.uint8)


def ours(name: str, x: torch.Tensor, strength: float, sign: float) -> torch.Tensor:
    operation = torch.full((B,), OPERATIONS.index(name))
    return augment(x.float() / 255, operation, torch.full((B,), sign), strength) * 255


STRENGTH = 1 / 3
SINGLE = {
    "identity": lambda x, s: x,
    "brightness": lambda x, s: tv.adjust_brightness(x, 1 + 0.3 * s),
    "color": lambda x, s: tv.adjust_saturation(x, 1 + 0.3 * s),
    "contrast": lambda x, s: tv.adjust_contrast(x, 1 + 0.3 * s),
    "sharpness": lambda x, s: tv.adjust_sharpness(x, 1 + 0.3 * s),
    "posterize": lambda x, s: tv.posterize(x, 7),
    "solarize": lambda x, s: tv.solarize(x, 170),
    "autocontrast": lambda x, s: tv.autocontrast(x),
    "equalize": lambda x, s: tv.equalize(x),
}


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("name", SINGLE)
def test_colours_equal_torchvision(name, sign):
    """Up to the rounding to whole levels, which we leave out."""
    x = images()
    torch.testing.assert_close(ours(name, x, STRENGTH, sign), SINGLE[name](x, sign).float(), rtol=0, atol=1.51)


@pytest.mark.parametrize("name", ["equalize", "posterize"])
def test_a_constant_image_stays(name):
    x = torch.full((B, 3, SIDE, SIDE), 64, dtype=torch.uint8)
    torch.testing.assert_close(ours(name, x, STRENGTH, 1.0), x.float())


def test_equalize_is_exact_on_uneven_histograms():
    x = images(1) // 3
    x[:, :, 0] = 250
    torch.testing.assert_close(ours("equalize", x, STRENGTH, 1.0), tv.equalize(x).float(), rtol=0, atol=1e-3)


def test_translation_moves_whole_pixels():
    x, strength = images(), 4 / (TRANSLATION * SIDE)  # four pixels
    right = ours("translate_x", x, strength, -1.0)
    torch.testing.assert_close(right[..., 4:], x[..., :-4].float())
    assert right[..., :4].eq(0).all()
    down = ours("translate_y", x, strength, -1.0)
    torch.testing.assert_close(down[:, :, 4:], x[:, :, :-4].float())


def test_rotation_equals_torchvision():
    x = images()
    for sign in (-1.0, 1.0):
        same = (ours("rotate", x, STRENGTH, sign) - tv.rotate(x, 10.0 * sign)).abs().lt(1e-3).float().mean()
        assert same > 0.97, "nearest neighbours may differ at ties only"


@pytest.mark.parametrize(("name", "axis"), [("shear_x", 3), ("shear_y", 2)])
def test_shear_shifts_lines_in_proportion_to_their_distance_from_the_centre(name, axis):
    x = images()
    sheared = ours(name, x, 1.0, 1.0)
    lines, moved = (x.float(), sheared) if axis == 3 else (x.float().mT, sheared.mT)
    for line in range(SIDE):
        shift = round(0.3 * (line + 0.5 - SIDE / 2))
        lo, hi = max(0, -shift), min(SIDE, SIDE - shift)
        torch.testing.assert_close(moved[:, :, line, lo:hi], lines[:, :, line, lo + shift : hi + shift])


def test_every_image_draws_its_own_and_the_generator_decides():
    x = images()[:1].repeat(64, 1, 1, 1).float() / 255
    first = rand_augment(x, torch.Generator().manual_seed(0))
    assert len({tuple(image.flatten().tolist()) for image in first}) > 20
    assert torch.equal(first, rand_augment(x, torch.Generator().manual_seed(0)))
    assert first.min() >= 0 and first.max() <= 1
