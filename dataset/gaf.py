"""Gramian angular fields (Wang and Oates, IJCAI 2015, eq. 1 to 5): a time series as a picture.

Shape letters: B series, C axes, L samples; everything runs on the device of its input. As a command it draws one:
python -m dataset.gaf a1_s1_t1_inertial.mat --out gaf.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from helper.protocols import UserError

KINDS = ("gasf", "gadf")


def scaled(x: Tensor) -> Tensor:
    """[..., L] -> the same in [-1, 1]: every series between its own minimum and maximum; 0 where it is constant.

    Values that are not finite count as the mean of the finite ones (0 where there are none).
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
    gadf: sin(phi_m - phi_n) = sqrt(1 - x_m^2) x_n - x_m sqrt(1 - x_n^2), antisymmetric. (VSKD's MATLAB takes arcsin for
    phi there, which is its negative.)
    """
    if kind not in KINDS:
        raise UserError(f"unknown Gramian angular field '{kind}': choose {' or '.join(KINDS)}")
    cos = scaled(x)
    sin = (1 - cos * cos).clamp_min(0).sqrt()
    c_m, c_n, s_m, s_n = cos[..., :, None], cos[..., None, :], sin[..., :, None], sin[..., None, :]
    return c_m * c_n - s_m * s_n if kind == "gasf" else s_m * c_n - c_m * s_n


def paa(x: Tensor, segments: int) -> Tensor:
    """Piecewise aggregate approximation: [..., L] -> [..., segments], means of equal shares of the time axis.

    A sample on the border of two segments counts in both by its share (Keogh et al., 2001, where segments do not
    divide L); UserError unless 1 <= segments <= L.
    """
    length = x.shape[-1]
    if not 1 <= segments <= length:
        raise UserError(f"piecewise aggregation of {length} samples needs 1 to {length} segments, not {segments}")
    edges = torch.arange(segments + 1, device=x.device, dtype=torch.float64) * (length / segments)
    start, stop = edges[:-1, None], edges[1:, None]
    place = torch.arange(length, device=x.device, dtype=torch.float64)
    share = (torch.minimum(stop, place + 1) - torch.maximum(start, place)).clamp_min(0)  # [segments, L]
    with torch.autocast(x.device.type, enabled=False):  # bfloat16 would leave two digits of the means
        return x @ (share / share.sum(1, keepdim=True)).to(x.dtype).T


def to_picture(field: Tensor) -> Tensor:
    """[..., L, L] -> the same in [0, 1]: every axis' matrix between its own minimum and maximum; 0 where constant."""
    low, high = field.amin((-2, -1), keepdim=True), field.amax((-2, -1), keepdim=True)
    spread = high - low
    return (field - low) / torch.where(spread > 0, spread, torch.ones_like(spread))


def gramian_field(x: Tensor, kind: str = "gasf", segments: int | None = None, size: int | None = None) -> Tensor:
    """Windows [B, C, L] -> pictures [B, C, size, size] float32 in [0, 1], one channel an axis, in the axes' order.

    segments: aggregate to this many samples first. size: resize (bilinear, as published) to this many pixels.
    """
    x = x.float() if segments is None else paa(x.float(), segments)
    picture = to_picture(gaf(x, kind))
    if size is not None and size != picture.shape[-1]:
        picture = F.interpolate(picture, (size, size), mode="bilinear", align_corners=False)
    return picture


def plot(series: Tensor, out: Path, title: str, kind: str = "gasf") -> None:
    """Write the picture people know: the axes over time, their fields, and the three first axes as RGB.

    series: [C, L].
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"the plot needs the package matplotlib: pip install matplotlib ({error})") from error
    axes = len(series)
    figure = Figure(figsize=(3 * (axes + 2), 3.2), layout="constrained")
    panels = figure.subplots(1, axes + 2)
    for name, line in zip("xyzuvw"[:axes], series, strict=True):
        panels[0].plot(line.numpy(), label=name, linewidth=1)
    panels[0].legend(fontsize="small")
    panels[0].set_title(title, fontsize="small")
    fields = gaf(series, kind).numpy()
    for panel, name, field in zip(panels[1:], "xyzuvw"[:axes], fields, strict=False):
        shown = panel.imshow(field, cmap="viridis", vmin=-1, vmax=1, origin="lower")
        panel.set_title(f"{kind.upper()}, {name}", fontsize="small")
    figure.colorbar(shown, ax=panels[axes], shrink=0.8)
    seen = to_picture(gaf(series[:3] if axes >= 3 else series[:1].expand(3, -1), kind))
    panels[-1].imshow(seen.permute(1, 2, 0).numpy(), origin="lower")
    panels[-1].set_title("as the network sees it", fontsize="small")
    figure.savefig(out, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    from dataset.sensors import MODALITIES, read_sensor

    parser = argparse.ArgumentParser(description="Draw the Gramian angular field of a sensor recording.")
    parser.add_argument(
        "file", type=Path, help="an inertial .mat of UTD-MHAD, a .txt of Berkeley-MHAD, a .csv of MMAct"
    )
    parser.add_argument("--modality", default="accel", choices=MODALITIES)
    parser.add_argument("--kind", default="gasf", choices=KINDS)
    parser.add_argument("--segments", type=int, help="aggregate to this many samples first")
    parser.add_argument("--out", type=Path, default=Path("gaf.png"))
    args = parser.parse_args(argv)
    series = torch.from_numpy(read_sensor(args.file, args.modality)).float()
    plot(series if args.segments is None else paa(series, args.segments), args.out, args.file.name, args.kind)
    print(f"{args.out}: {args.kind.upper()} of {args.file.name}, {args.modality}, {series.shape[1]} samples")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
