"""Gramian angular fields: the formulas, another library, and what may be wrong with a series."""

import math

import numpy as np
import pytest
import torch

from core.protocols import UserError
from models import _gaf as module
from models._gaf import gaf, gramian_field, paa, scaled, to_picture
from scripts.vskd import draw_gaf

B, C, L = 3, 3, 40


@pytest.fixture
def series():
    return torch.randn(B, C, L, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(-1)


def test_gasf_as_the_formula_gives_it(series):
    field, x = gaf(series), scaled(series)
    assert torch.equal(x.amin(-1), -torch.ones(B, C).double()) and torch.equal(x.amax(-1), torch.ones(B, C).double())
    phi = torch.arccos(x)
    torch.testing.assert_close(field, torch.cos(phi[..., :, None] + phi[..., None, :]), rtol=0, atol=1e-7)
    torch.testing.assert_close(field, field.mT, rtol=0, atol=0)
    torch.testing.assert_close(field.diagonal(dim1=-2, dim2=-1), 2 * x**2 - 1)


def test_gadf_as_the_formula_gives_it(series):
    field, phi = gaf(series, "gadf"), torch.arccos(scaled(series))
    torch.testing.assert_close(field, torch.sin(phi[..., :, None] - phi[..., None, :]), rtol=0, atol=1e-7)
    assert torch.equal(field, -field.mT)
    matlab = torch.arcsin(scaled(series))  # VSKD takes arcsin; after rescaling the two pictures are transposes
    theirs = torch.sin(matlab[..., :, None] - matlab[..., None, :])
    torch.testing.assert_close(field, -theirs, rtol=0, atol=1e-7)
    torch.testing.assert_close(to_picture(theirs), to_picture(field).mT, rtol=0, atol=1e-7)


@pytest.fixture(scope="module")
def pyts():
    """The library, uncompiled: numba compiles most of it on import, which takes a minute."""
    import numba

    numba.config.DISABLE_JIT = True
    import pyts.approximation
    import pyts.image

    return pyts


@pytest.mark.parametrize(("kind", "method"), [("gasf", "summation"), ("gadf", "difference")])
@pytest.mark.parametrize("segments", [None, 10])
def test_pyts_agrees(pyts, series, kind, method, segments):
    flat = series.flatten(0, 1).numpy()
    theirs = pyts.image.GramianAngularField(image_size=segments or 1.0, method=method).transform(flat)
    ours = gaf(series if segments is None else paa(series, segments), kind).flatten(0, 1)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-7)


def test_paa(pyts, series):
    average = pyts.approximation.PiecewiseAggregateApproximation(window_size=None, output_size=8)
    theirs = average.transform(series.flatten(0, 1).numpy())
    np.testing.assert_allclose(paa(series, 8).flatten(0, 1).numpy(), theirs, rtol=0, atol=1e-12)
    three = paa(torch.tensor([1.0, 2, 3, 4, 5]), 3)  # segments of 5/3 samples
    torch.testing.assert_close(three, torch.tensor([(1 + 2 * 2 / 3) * 3 / 5, 3.0, (4 * 2 / 3 + 5) * 3 / 5]))
    torch.testing.assert_close(paa(series, L), series)
    for wrong in (0, L + 1):
        with pytest.raises(UserError, match=f"needs 1 to {L} segments, not {wrong}"):
            paa(series, wrong)


def test_picture_keeps_the_axes_apart_and_in_order(series):
    series[:, 1] *= 100  # units do not matter, every axis has its own scale
    picture = gramian_field(series)
    assert picture.shape == (B, C, L, L) and picture.dtype == torch.float32
    assert torch.equal(picture.amin((2, 3)), torch.zeros(B, C)) and torch.equal(picture.amax((2, 3)), torch.ones(B, C))
    for axis in range(C):
        alone = gramian_field(series[:, axis : axis + 1])[:, 0]
        torch.testing.assert_close(picture[:, axis], alone)
    assert gramian_field(torch.rand(2, 6, 9)).shape == (2, 6, 9, 9)


@pytest.mark.parametrize("kind", module.KINDS)
def test_series_that_are_no_curve(kind):
    constant, gap = torch.full((1, 1, 6), 7.0), torch.tensor([[[1.0, math.nan, 3.0, math.inf]]])
    for x in (constant, gap, torch.full((1, 1, 4), math.nan)):
        assert gaf(x, kind).isfinite().all() and gramian_field(x, kind).isfinite().all()
    assert torch.equal(scaled(constant), torch.zeros(1, 1, 6)) and not gramian_field(constant, kind).any()
    assert torch.equal(scaled(gap), torch.tensor([[[-1.0, 0.0, 1.0, 0.0]]]))  # the mean, 2, in both gaps
    with pytest.raises(UserError, match="choose gasf or gadf"):
        gaf(constant, "mtf")


def test_bf16_does_not_reach_the_field(series):
    with torch.autocast("cpu", torch.bfloat16):
        low = gramian_field(paa(series.float(), 10))
    torch.testing.assert_close(low, gramian_field(paa(series.float(), 10)))


def test_the_command_draws_a_picture(tmp_path, capsys):
    from scipy.io import savemat

    file, out = tmp_path / "a1_s1_t1_inertial.mat", tmp_path / "gaf.png"
    savemat(file, {"d_iner": np.random.default_rng(0).normal(size=(50, 6))})
    draw_gaf.main([str(file), "--out", str(out), "--kind", "gadf", "--modality", "inertial", "--segments", "20"])
    assert out.read_bytes().startswith(b"\x89PNG") and "GADF of a1_s1_t1_inertial.mat" in capsys.readouterr().out
