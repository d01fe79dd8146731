#!/usr/bin/env python3
"""Figures of runs and networks: python scripts/plot.py curves|cost|correlation|tsne|reliability ... --out FILE.png

  curves       test loss (left) and top-1 (right) by epoch, mean over trials with their range
  cost         accuracy against multiply-accumulates at test time
  correlation  difference of the correlations between class logits of students from the teacher's
  tsne         t-SNE of the features before the classifier
  reliability  confidence against accuracy, with the expected calibration error
The form follows the suffix of --out: png, pdf, svg. Colour-blind readers can distinguish the colours, lines and markers
also in grey.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.log import progress, start_log
from core.option import whole
from core.packages import needed
from core.protocols import DataSet, UserError
from helper.deploy.as_trained import add_as_trained, open_as_trained
from helper.deploy.pictures import draw_calibration, pyplot, save
from helper.machine.devices import pick_device
from helper.machine.kernels import to_device
from helper.machine.program import ScriptParser, run_script
from helper.networks.checkpoint import CheckpointOf
from helper.networks.load import load_network
from helper.options.quick import normalised
from helper.tables.looks import LINES, looks, method_of
from helper.tables.runs import Run, add_runs, chosen_runs, evaluated, grouped, last, mean_std, network
from helper.tables.table import tell_apart

MARKERS = "osD^vP*X<>"


def looks_of(groups: Sequence[Sequence[Run]]) -> list[tuple[str, Any]]:
    """(colour, line) of each curve; a method has the same colour in every picture."""
    return [(colour, LINES[k]) for colour, k in looks([method_of(group[0]) for group in groups])]


def plain(text: str) -> str:
    """A label as it is: matplotlib would set what stands between dollars as mathematics, and hides "_" in a legend."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def pick(args: argparse.Namespace) -> list[tuple[str, list[Run]]]:
    """(label, repetitions) of every cell below --root."""
    groups = grouped(chosen_runs(args.root, args.dataset, args.only))
    named = list(zip(tell_apart(groups), groups, strict=True))
    if len({network(g[0]) for _, g in named if not g[0].is_teacher}) > 1:
        named = [(f"{label}, {network(g[0])}", g) for label, g in named]
    return [(plain(label), group) for label, group in named]


def draw_curves(args: argparse.Namespace) -> None:
    named = [(label, g) for label, g in pick(args) if not g[0].is_teacher]
    if not named:
        raise UserError("no finished student found: curves show students; train one or give another --root")
    curves(named, args.out)


def curves(named: list[tuple[str, list[Run]]], out: Path) -> None:
    """Loss and accuracy on test by epoch. named: (label, repetitions)."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.0))
    named = sorted(named, key=lambda item: -sum(last(item[1])) / len(item[1]))  # the legend follows the curves' ends
    for (label, group), (colour, line) in zip(named, looks_of([g for _, g in named]), strict=True):
        runs = evaluated(group)
        epochs = [row["epoch"] for row in runs[0]]
        for axis, key in zip(axes, ("test_loss", "test_acc"), strict=True):
            values = torch.tensor([[row[key] for row in rows] for rows in runs], dtype=torch.float64)
            text = f"{label} {mean_std(last(group))}"
            axis.plot(epochs, values.mean(0).numpy(), linestyle=line, color=colour, lw=1.3, label=text)
            if len(group) > 1:
                band = (values.amin(0).numpy(), values.amax(0).numpy())
                axis.fill_between(epochs, *band, color=colour, alpha=0.15, lw=0)
    values = torch.tensor([row["test_loss"] for _, g in named for run in g for row in run.rows if "test_loss" in row])
    usual, top = float(values.quantile(0.95)), float(values.max())
    if top > 1.3 * usual:  # one wild epoch would flatten all other curves
        axes[0].set_ylim(0.9 * float(values.min()), 1.1 * usual)
    cut = f" (up to {top:.1f}, cut)" if top > 1.3 * usual else ""
    axes[0].set(xlabel="epoch", ylabel="cross-entropy on test", title=f"test loss{cut}")
    axes[1].set(xlabel="epoch", ylabel="top-1 accuracy in %", title="test accuracy")
    legend = axes[1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), title="last epoch", handlelength=2.8)
    legend.set_in_layout(False)  # long labels widen the picture, not narrow the axes
    for axis in axes:
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.tight_layout()
    legend.set_in_layout(True)
    save(figure, out)


def draw_cost(args: argparse.Namespace) -> None:
    plt = pyplot()
    named = pick(args)
    figure, axis = plt.subplots(figsize=(6.4, max(3.8, 1 + 0.22 * len(named))))  # students of one network share a cost
    costs = sorted({g[0].parameters["Deployed MACs"] for _, g in named})
    marks = itertools.cycle(MARKERS)
    points = []
    for (label, group), (colour, _) in zip(named, looks_of([g for _, g in named]), strict=True):
        values = last(group)
        mean, cost = sum(values) / len(values), group[0].parameters["Deployed MACs"]
        spread = [[mean - min(values)], [max(values) - mean]]
        axis.errorbar(cost, mean, yerr=spread, fmt=next(marks), color=colour, ms=6, capsize=2)
        points.append((cost, mean, f"{label} ({group[0].parameters['Deployed params']:.3f} M)", colour))
    if len(costs) > 1 and costs[-1] > 4 * costs[0]:
        axis.set_xscale("log")
    axis.margins(0.12)
    axis.set(xlabel="million multiply-accumulates per image at test time", ylabel="top-1 accuracy in %, last epoch")
    axis.set_title("method (parameters)")
    label_points(figure, axis, points)
    save(figure, args.out)


def label_points(figure: Any, axis: Any, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Each text next to its point, moved up or down, inside the axes, until it covers no other text."""
    from matplotlib.text import Text

    extent = Text.get_window_extent
    figure.canvas.draw()
    middle = sum(axis.get_xlim()) / 2 if axis.get_xscale() == "linear" else math.prod(axis.get_xlim()) ** 0.5
    taken: list[Any] = []
    for x, y, text, colour in sorted(points, key=lambda point: -point[1]):
        left = x <= middle  # the text stands on the side where there is room
        shown = axis.annotate(
            text,
            (x, y),
            (9 if left else -9, 0),
            textcoords="offset points",
            ha="left" if left else "right",
            va="center",
            color=colour,
            fontsize=8,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": colour},
        )
        shown.update_positions(figure.canvas.get_renderer())  # or its extent is that of a text at the origin
        across, lowest, highest = shown.get_position()[0], axis.bbox.y0, axis.bbox.y1
        for down in sorted(range(-900, 900, 3), key=abs):
            shown.set_position((across, down))
            box = extent(shown)  # of the text: lines meet where two points are one
            if lowest <= box.y0 and box.y1 <= highest and not any(box.overlaps(other) for other in taken):
                break
        taken.append(extent(shown))


@torch.no_grad()
def outputs(path: Path, data: DataSet, gpu_id: str, images: int | None = None) -> tuple[str, Tensor, Tensor, Tensor]:
    """(name, logits [N, K], pooled features [N, D], labels [N]) on the test samples, in float32. images: stop after so
    many."""
    loaded = load_network(path, None, data.num_classes, data.shapes, flag="--path")
    device, _ = pick_device(gpu_id)
    tap = loaded.spec.feats[-1]
    net = to_device(loaded.tapped((tap,)), device).eval()
    logits, features, labels = [], [], []
    for batch in progress(data.test_loader(500, device=device), "predictions"):
        found = net(batch.inputs)
        logits.append(found["logits"].float().cpu())
        features.append(found[tap].flatten(1).float().cpu())
        labels.append(batch.target.cpu())
        if images and sum(map(len, labels)) >= images:
            break
    method = loaded.checkpoint.meta.get("method")
    name = loaded.spec.name + (f", {method}" if method and method != "vanilla" else "")
    return plain(name), torch.cat(logits), torch.cat(features), torch.cat(labels)


def outputs_asked(path: Path, args: argparse.Namespace) -> tuple[str, Tensor, Tensor, Tensor]:
    """outputs() on the data that the flags choose."""
    return outputs(path, open_as_trained(path, args)[0], args.gpu_id, args.images)


def correlations(logits: Tensor) -> Tensor:
    """[N, K] -> [K, K]: how the logits of two classes go together over the images; 0 where one never changes."""
    return torch.corrcoef(logits.double().T).nan_to_num()


def draw_correlation(args: argparse.Namespace) -> None:
    _, teacher, _, _ = outputs_asked(args.path_t, args)
    target = correlations(teacher)
    found = [outputs_asked(path, args) for path in args.path]
    gaps = [(correlations(logits) - target).abs() for _, logits, _, _ in found]
    plt = pyplot()
    figure, axes = plt.subplots(1, len(gaps), figsize=(2.7 * len(gaps) + 0.8, 2.9), squeeze=False, layout="constrained")
    top = max(float(gap.max()) for gap in gaps)
    for axis, gap, (name, *_) in zip(axes[0], gaps, found, strict=True):
        image = axis.imshow(gap.numpy(), cmap="cividis", vmin=0, vmax=top, interpolation="nearest")
        axis.set(title=f"{name}\nmean {gap.mean():.3f}, largest {gap.max():.2f}", xlabel="class")
        axis.grid(False)
    axes[0][0].set_ylabel("class")
    figure.colorbar(image, ax=list(axes[0]), label="|student - teacher|", shrink=0.85)
    save(figure, args.out)


def draw_tsne(args: argparse.Namespace) -> None:
    manifold = needed("sklearn.manifold", "t-SNE", "scikit-learn")
    plt = pyplot()
    figure, axes = plt.subplots(1, len(args.path), figsize=(3.0 * len(args.path), 3.3), squeeze=False)
    for axis, path in zip(axes[0], args.path, strict=True):
        data, _ = open_as_trained(path, args)
        name, _, features, labels = outputs(path, data, args.gpu_id, args.images)
        chosen = labels < args.classes
        features, labels = features[chosen], labels[chosen]
        if len(labels) < 10:
            raise UserError(f"{len(labels)} images of the first {args.classes} classes are too few: raise --images")
        perplexity = min(30.0, (len(labels) - 1) / 3)
        tsne = manifold.TSNE(perplexity=perplexity, init="pca", random_state=0)
        places = tsne.fit_transform(features.numpy())
        kinds = labels.unique().tolist()
        for place, k in enumerate(kinds):
            mine = labels == k
            axis.scatter(
                *places[mine.numpy()].T,
                s=9,
                color=plt.colormaps["turbo"]((place + 0.5) / len(kinds)),
                marker=MARKERS[place % len(MARKERS)],
                lw=0,
                label=plain(str(data.classes[k])),
                alpha=0.8,
            )
        axis.set(title=f"{name}, {len(labels)} images", xticks=[], yticks=[])
        axis.grid(False)
        axis.spines[["left", "bottom"]].set_visible(False)
    handles, names = axes[0][0].get_legend_handles_labels()
    columns = min(len(names), 5 * len(args.path))
    figure.legend(handles, names, loc="upper center", ncol=columns, markerscale=2, bbox_to_anchor=(0.5, 0.06))
    save(figure, args.out)


def draw_reliability(args: argparse.Namespace) -> None:
    plt = pyplot()
    count = len(args.path)
    figure, axes = plt.subplots(
        2,
        count,
        figsize=(2.9 * count, 3.9),
        squeeze=False,
        sharex=True,
        sharey="row",
        height_ratios=(3, 1),
        layout="constrained",
    )
    for (axis, counts), path in zip(axes.T, args.path, strict=True):
        name, logits, _, labels = outputs_asked(path, args)
        ece, bins = draw_calibration(axis, logits, labels, args.bins)
        accuracy = 100 * float((logits.argmax(1) == labels).double().mean())
        axis.set(title=f"{name}\ntop-1 {accuracy:.2f}, ECE {100 * ece:.2f} %", xlabel="")
        numbers = (bins[:, 2] * len(labels)).round().int().tolist()
        middles = [(k + 0.5) / args.bins for k in range(args.bins)]
        counts.bar(middles, numbers, 1 / args.bins, color="0.7", edgecolor="white", lw=0.5)
        for middle, number in zip(middles, numbers, strict=True):
            if number:
                counts.text(middle, number, f" {number}", ha="center", va="bottom", fontsize=5.5, rotation=90)
        counts.set(xlabel="confidence", ylim=(0, 1.6 * max(numbers)))
    axes[0][0].set_ylabel("accuracy")
    axes[1][0].set_ylabel("images")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncol=3 if count > 1 else 2)
    save(figure, args.out)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ScriptParser(description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, draw in (("curves", draw_curves), ("cost", draw_cost)):
        sub = kinds.add_parser(kind)
        add_runs(sub)
        sub.set_defaults(draw=draw)
    checkpoint = {"type": Path, "required": True, "action": CheckpointOf, "metavar": "FILE"}
    for kind, draw in (("correlation", draw_correlation), ("tsne", draw_tsne), ("reliability", draw_reliability)):
        sub = kinds.add_parser(kind)
        sub.add_argument("--path", **checkpoint, nargs="+", help="checkpoints, or folders of runs")
        add_as_trained(sub)
        sub.add_argument("--gpu_id", default="0", metavar="GPUS")
        sub.add_argument("--images", **whole(1, 10**9), help="stop after this many test images")
        sub.set_defaults(draw=draw)
        if kind == "correlation":
            sub.add_argument("--path_t", **checkpoint, help="the teacher's checkpoint")
        if kind == "tsne":
            sub.add_argument("--classes", **whole(1), default=10, help="number of classes to show")
        if kind == "reliability":
            sub.add_argument("--bins", **whole(1), default=15, help="bins of equal width")
    for sub in kinds.choices.values():
        sub.add_argument("--out", type=Path, required=True, metavar="FILE")
    args = parser.parse_args(normalised(argv))
    start_log()
    args.draw(args)


if __name__ == "__main__":
    run_script(main)
