"""Gramian angular fields (Wang and Oates, IJCAI 2015, eq. 1 to 5): a time series as a picture.

Shape letters: B series, C axes, L samples; everything runs on the device of its input. Draw a field with
python scripts/vskd/draw_gaf.py a1_s1_t1_inertial.mat --out gaf.png
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.protocols import UserError

KINDS = ("gasf", "gadf")


def scaled(x: Tensor) -> Tensor:
    """[..., L] -> the same in [-1, 1]: every series scaled from its own minimum and maximum; 0 if it is constant.

    Values that are not finite are replaced with the mean of the finite ones (0 if there are none).
    """
    finite = x.isfinite()
    x = torch.where(finite, x, torch.zeros_like(x))
    mean = x.sum(-1, keepdim=True) / finite.sum(-1, keepdim=True).clamp_min(1)
    x = torch.where(finite, x, mean)
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    spread = high - low
    out = (x - low) / torch.where(spread > 0, spread, torch.ones_like(spread)) * 2 - 1
    return torch.where(spread > 0, out, torch.zeros_like(out)).clamp(-1, 1)


def gaf(x: Tensor, kind: str = "gasf") -> Tensor:
    """[..., L] -> [..., L, L] in [-1, 1], with phi = arccos of the scaled series.

    gasf: cos(phi_m + phi_n) = x_m x_n - sqrt(1 - x_m^2) sqrt(1 - x_n^2), symmetric, with 2 x^2 - 1 on its diagonal.
    gadf: sin(phi_m - phi_n) = sqrt(1 - x_m^2) x_n - x_m sqrt(1 - x_n^2), antisymmetric. (VSKD's MATLAB code uses
    arcsin for phi, which gives the negative.)
    """
    if kind not in KINDS:
        raise UserError(f"unknown Gramian angular field '{kind}': choose {' or '.join(KINDS)}")
    cos = scaled(x)
    sin = (1 - cos * cos).clamp_min(0).sqrt()
    c_m, c_n, s_m, s_n = cos[..., :, None], cos[..., None, :], sin[..., :, None], sin[..., None, :]
    return c_m * c_n - s_m * s_n if kind == "gasf" else s_m * c_n - c_m * s_n


def paa(x: Tensor, segments: int) -> Tensor:
    """Piecewise aggregate approximation: [..., L] -> [..., segments], means of equal shares of the time axis.

    If segments do not divide L, a sample on the border of two segments counts in both, in proportion (Keogh et al.,
    2001). UserError unless 1 <= segments <= L.
    """
    length = x.shape[-1]
    if not 1 <= segments <= length:
        raise UserError(f"piecewise aggregation of {length} samples needs 1 to {length} segments, not {segments}")
    edges = torch.arange(segments + 1, device=x.device, dtype=torch.float64) * (length / segments)
    start, stop = edges[:-1, None], edges[1:, None]
    place = torch.arange(length, device=x.device, dtype=torch.float64)
    share = (torch.minimum(stop, place + 1) - torch.maximum(start, place)).clamp_min(0)  # [segments, L]
    with torch.autocast(x.device.type, enabled=False):  # bfloat16 keeps only two digits of the means
        return x @ (share / share.sum(1, keepdim=True)).to(x.dtype).T


def to_picture(field: Tensor) -> Tensor:
    """[..., L, L] -> the same in [0, 1]: the matrix of every axis scaled by its minimum and maximum; 0 if constant."""
    low, high = field.amin((-2, -1), keepdim=True), field.amax((-2, -1), keepdim=True)
    spread = high - low
    return (field - low) / torch.where(spread > 0, spread, torch.ones_like(spread))


def gramian_field(x: Tensor, kind: str = "gasf") -> Tensor:
    """Windows [B, C, L] -> pictures [B, C, L, L] float32 in [0, 1], one channel per axis, in their order."""
    return to_picture(gaf(x.float(), kind))
