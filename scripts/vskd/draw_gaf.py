"""Draws a Gramian angular field: python scripts/vskd/draw_gaf.py"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.packages import needed
from helper.machine.program import run_script
from models._gaf import KINDS, gaf, paa, to_picture


def plot(series: Tensor, out: Path, title: str, kind: str = "gasf") -> None:
    """Write the picture people know: the axes over time, their fields, and the three first axes as RGB.

    series: [C, L].
    """
    axes = len(series)
    figure = needed("matplotlib.figure", "the plot").Figure(figsize=(3 * (axes + 2), 3.2), layout="constrained")
    panels = figure.subplots(1, axes + 2)
    for name, line in zip("xyzuvw"[:axes], series, strict=True):
        panels[0].plot(line.numpy(), label=name, linewidth=1)
    panels[0].legend(fontsize="small")
    panels[0].set_title(title, fontsize="small")
    panels[0].set(xlabel="sample", ylabel="reading")
    fields = gaf(series, kind).numpy()
    for panel, name, field in zip(panels[1:], "xyzuvw"[:axes], fields, strict=False):
        shown = panel.imshow(field, cmap="RdBu_r", vmin=-1, vmax=1, origin="lower")  # white is 0
        panel.set_title(f"{kind.upper()}, {name}", fontsize="small")
    figure.colorbar(shown, ax=panels[axes], shrink=0.8, label="cosine or sine of the angles")
    seen = to_picture(gaf(series[:3] if axes >= 3 else series[:1].expand(3, -1), kind))
    panels[-1].imshow(seen.permute(1, 2, 0).numpy(), origin="lower")
    panels[-1].set_title("as the network sees it", fontsize="small")
    for panel in panels[1:]:
        panel.grid(False)
        panel.set(xlabel="sample", ylabel="sample")
    figure.savefig(out, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    from dataset.recordings.sensors import MODALITIES, read_sensor

    parser = argparse.ArgumentParser(description="Draw the Gramian angular field of a sensor recording.")
    parser.add_argument(
        "file", type=Path, help="an inertial .mat of UTD-MHAD, a .txt of Berkeley-MHAD, a .csv of MMAct"
    )
    parser.add_argument("--modality", default="accel", choices=MODALITIES)
    parser.add_argument("--kind", default="gasf", choices=KINDS)
    parser.add_argument("--segments", type=int, help="aggregate to this many samples first")
    parser.add_argument("--out", type=Path, default=Path("gaf.png"), metavar="FILE")
    args = parser.parse_args(argv)
    series = torch.from_numpy(read_sensor(args.file, args.modality)).float()
    plot(series if args.segments is None else paa(series, args.segments), args.out, args.file.name, args.kind)
    print(f"{args.out}: {args.kind.upper()} of {args.file.name}, {args.modality}, {series.shape[1]} samples")


if __name__ == "__main__":
    run_script(main)
