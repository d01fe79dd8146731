"""Figures: settings of matplotlib, and a grid of predictions."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from core.files import make_folder
from core.packages import needed
from core.protocols import UserError
from helper.evaluation.metrics import calibration

# Okabe and Ito, 2008, without the yellow that fades on paper
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


def pyplot() -> Any:
    """matplotlib.pyplot without a display, with the settings of all figures. UserError if the package is missing."""
    needed("matplotlib", "a picture").use("agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 9,
            "axes.titlesize": 9,
            "axes.grid": True,
            "grid.color": "0.9",
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "legend.fontsize": 8,
            "figure.dpi": 150,
            "savefig.bbox": "tight",
            "pdf.fonttype": 42,  # keep text as text
            "svg.fonttype": "none",
        }
    )
    return plt


def save(figure: Any, out: Path) -> None:
    """Write a figure; the suffix of `out` decides its format. UserError if that fails."""
    make_folder(out.parent)
    try:
        figure.savefig(out)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {out}: {error}") from error
    print(f"wrote {out}")


def as_png(figure: Any) -> str:
    """The figure as a data URL for a page."""
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def draw_calibration(axis: Any, logits: Tensor, labels: Tensor, bins: int = 15) -> tuple[float, Tensor]:
    """Confidence against accuracy in bins of equal width; what calibration() finds."""
    error, rows = calibration(logits, labels, bins)
    width, filled = 1 / bins, rows[:, 2] > 0
    middles = [(k + 0.5) * width for k in range(bins)]
    axis.bar(middles, rows[:, 1].numpy(), width, color=COLOURS[4], edgecolor="white", lw=0.5, label="accuracy")
    axis.plot([0, 1], [0, 1], "--", color="0.3", lw=1, label="calibrated")
    means = (rows[filled, k].numpy() for k in (0, 1))
    axis.plot(*means, "o", color=COLOURS[1], ms=3, label="mean confidence of the bin")
    axis.set(xlabel="confidence", xlim=(0, 1), ylim=(0, 1))
    return error, rows


def draw_confusion(axis: Any, counts: Tensor, classes: Sequence[str]) -> Any:
    """counts: [K, K], rows true and columns predicted; drawn as shares of the row. The image, for a colour bar."""
    shares = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    image = axis.imshow(shares.numpy(), cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    axis.set(xlabel="predicted", ylabel="true")
    axis.grid(False)
    if len(classes) <= 30:
        places = range(len(classes))
        axis.set_xticks(places, classes, rotation=90, fontsize=7)
        axis.set_yticks(places, classes, fontsize=7)
    return image


def draw_input(axis: Any, x: Tensor) -> None:
    """Draw an input: an image, the middle frame of a clip, or the axes of a sensor over time."""
    if x.ndim == 2:
        for row, colour in zip(x.tolist(), COLOURS, strict=False):
            axis.plot(row, color=colour, lw=0.8)
        axis.set(xticks=[], yticks=[])
        return
    picture = x[len(x) // 2] if x.ndim == 4 else x
    axis.imshow(picture.permute(1, 2, 0).clamp(0, 1).numpy())
    axis.axis("off")


def grid(inputs: Sequence[Tensor], titles: Sequence[str]) -> Any:
    """A figure of inputs, each below its title."""
    plt = pyplot()
    columns = min(5, len(inputs))
    rows = -(-len(inputs) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.9 * columns, 2.2 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(inputs) :]:
        axis.axis("off")
    for axis, x, title in zip(axes.flat, inputs, titles, strict=False):
        draw_input(axis, x)
        axis.set_title(title, fontsize=7)
    return figure
