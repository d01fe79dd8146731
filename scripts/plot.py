#!/usr/bin/env python3
"""Pictures of runs and networks: python scripts/plot.py curves|cost|correlation|tsne|reliability ... --out FILE.png

  curves       test loss (left) and top-1 (right) by epoch, mean over trials with their range
  cost         accuracy against multiply-accumulates at test time
  correlation  how far the correlations between class logits of students are from the teacher's
  tsne         t-SNE of the features before the classifier
  reliability  confidence against accuracy, with the expected calibration error
The form follows the suffix of --out: png, pdf, svg. Colours are told apart by colour-blind readers, lines and markers
also in grey.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.protocols import DataSet, UserError
from dataset import dataset_dict
from helper.deploy.as_trained import add_as_trained, of_clips, options_as_trained
from helper.deploy.pictures import COLOURS, draw_calibration, pyplot, save
from helper.machine.devices import pick_device, to_device
from helper.networks.load import load_network
from helper.options.parse import normalised
from helper.tables.runs import Run, chosen_runs, grouped, last, mean_std, network
from helper.tables.table import tell_apart

LINES = ("-", "--", "-.", ":")
MARKERS = "osD^vP*X<>"


def styles(count: int) -> list[tuple[str, str]]:
    """(colour, line) of each of `count` curves: both change from one to the next, so that they differ in grey too; 28
    pairs in all."""
    return [(COLOURS[i % len(COLOURS)], LINES[i % len(LINES)]) for i in range(count)]


def pick(args: argparse.Namespace) -> list[tuple[str, list[Run]]]:
    """(label, repetitions) of every cell below --root."""
    groups = grouped(chosen_runs(args.root, args.dataset, args.only))
    named = list(zip(tell_apart(groups), groups, strict=True))
    if len({network(g[0]) for _, g in named if not g[0].is_teacher}) > 1:
        named = [(f"{label}, {network(g[0])}", g) for label, g in named]
    return named


def draw_curves(args: argparse.Namespace) -> None:
    named = [(label, g) for label, g in pick(args) if not g[0].is_teacher]
    if not named:
        raise UserError("curves are drawn of students, and there is no finished one here")
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.0))
    named.sort(key=lambda item: -sum(last(item[1])) / len(item[1]))  # the legend follows the curves' ends
    for (label, group), (colour, line) in zip(named, styles(len(named)), strict=True):
        for axis, key in zip(axes, ("test_loss", "test_acc"), strict=True):
            runs = [[row for row in run.rows if key in row] for run in group]
            epochs = [row["epoch"] for row in runs[0]]
            values = torch.tensor([[row[key] for row in rows][: len(epochs)] for rows in runs], dtype=torch.float64)
            axis.plot(
                epochs, values.mean(0).numpy(), line, color=colour, lw=1.3, label=f"{label} {mean_std(last(group))}"
            )
            if len(group) > 1:
                axis.fill_between(
                    epochs, values.amin(0).numpy(), values.amax(0).numpy(), color=colour, alpha=0.15, lw=0
                )
    values = torch.tensor([row["test_loss"] for _, g in named for run in g for row in run.rows if "test_loss" in row])
    usual, top = float(values.quantile(0.95)), float(values.max())
    if top > 1.3 * usual:  # one wild epoch would flatten all other curves
        axes[0].set_ylim(0.9 * float(values.min()), 1.1 * usual)
    cut = f" (up to {top:.1f}, cut)" if top > 1.3 * usual else ""
    axes[0].set(xlabel="epoch", ylabel="cross-entropy on test", title=f"test loss{cut}")
    axes[1].set(xlabel="epoch", ylabel="top-1 accuracy in %", title="test accuracy")
    axes[1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), title="last epoch", handlelength=2.4)
    for axis in axes:
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.tight_layout()
    save(figure, args.out)


def draw_cost(args: argparse.Namespace) -> None:
    plt = pyplot()
    named = pick(args)
    figure, axis = plt.subplots(figsize=(5.2, 3.4))
    costs = sorted({g[0].parameters["Deployed MACs"] for _, g in named})
    marks = itertools.cycle(MARKERS)
    for (label, group), (colour, _) in zip(named, styles(len(named)), strict=True):
        values = last(group)
        mean = sum(values) / len(values)
        axis.errorbar(
            group[0].parameters["Deployed MACs"],
            mean,
            yerr=[[mean - min(values)], [max(values) - mean]],
            fmt=next(marks),
            color=colour,
            ms=6,
            capsize=2,
            label=f"{label} ({group[0].parameters['Deployed params']:.3f} M)",
        )
    if len(costs) > 1 and costs[-1] > 4 * costs[0]:
        axis.set_xscale("log")
    axis.margins(0.12)
    axis.set(xlabel="million multiply-accumulates per image at test time", ylabel="top-1 accuracy in %, last epoch")
    axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), title="method (parameters)")
    save(figure, args.out)


@torch.no_grad()
def outputs(path: Path, args: argparse.Namespace, data: DataSet) -> tuple[str, Tensor, Tensor, Tensor]:
    """(name, logits [N, K], pooled features [N, D], labels [N]) on the test samples, in float32."""
    loaded = load_network(path, None, data.num_classes, data.shapes, flag="--path")
    device, _ = pick_device(args.gpu_id)
    tap = loaded.spec.feats[-1]
    net = to_device(loaded.tapped((tap,)), device).eval()
    logits, features, labels = [], [], []
    for batch in data.test_loader(500, device=device):
        found = net(batch.inputs)
        logits.append(found["logits"].float().cpu())
        features.append(found[tap].flatten(1).float().cpu())
        labels.append(batch.target.cpu())
        if args.images and sum(map(len, labels)) >= args.images:
            break
    method = loaded.checkpoint.meta.get("method")
    name = loaded.spec.name + (f", {method}" if method and method != "vanilla" else "")
    return name, torch.cat(logits), torch.cat(features), torch.cat(labels)


def open_data(path: Path, args: argparse.Namespace) -> DataSet:
    """As the checkpoint's network was trained on it."""
    return dataset_dict[args.dataset](
        options_as_trained(path, Path(args.data_folder), args.image_size, **of_clips(args))
    )


def correlations(logits: Tensor) -> Tensor:
    """[N, K] -> [K, K]: how the logits of two classes go together over the images; 0 where one never changes."""
    return torch.corrcoef(logits.double().T).nan_to_num()


def draw_correlation(args: argparse.Namespace) -> None:
    _, teacher, _, _ = outputs(args.path_t, args, open_data(args.path_t, args))
    target = correlations(teacher)
    found = [outputs(path, args, open_data(path, args)) for path in args.path]
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
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise UserError("t-SNE needs the package scikit-learn: pip install scikit-learn") from error
    plt = pyplot()
    figure, axes = plt.subplots(1, len(args.path), figsize=(3.0 * len(args.path), 3.3), squeeze=False)
    for axis, path in zip(axes[0], args.path, strict=True):
        data = open_data(path, args)
        name, _, features, labels = outputs(path, args, data)
        chosen = labels < args.classes
        features, labels = features[chosen], labels[chosen]
        if len(labels) < 10:
            raise UserError(f"{len(labels)} images of the first {args.classes} classes are too few for t-SNE")
        perplexity = min(30.0, (len(labels) - 1) / 3)
        places = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features.numpy())
        for k in labels.unique().tolist():
            mine = labels == k
            colour, mark = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
            axis.scatter(
                *places[mine.numpy()].T, s=9, c=colour, marker=mark, lw=0, label=str(data.classes[k]), alpha=0.8
            )
        axis.set(title=f"{name}, {len(labels)} images", xticks=[], yticks=[])
        axis.grid(False)
        axis.spines[["left", "bottom"]].set_visible(False)
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="lower center", ncol=min(len(names), 5), markerscale=2, bbox_to_anchor=(0.5, -0.14)
    )
    save(figure, args.out)


def draw_reliability(args: argparse.Namespace) -> None:
    plt = pyplot()
    count = len(args.path)
    figure, axes = plt.subplots(1, count, figsize=(2.7 * count, 2.9), squeeze=False, sharey=True, layout="constrained")
    for axis, path in zip(axes[0], args.path, strict=True):
        name, logits, _, labels = outputs(path, args, open_data(path, args))
        ece = draw_calibration(axis, logits, labels, args.bins)
        accuracy = 100 * float((logits.argmax(1) == labels).double().mean())
        axis.set_title(f"{name}\ntop-1 {accuracy:.2f}, ECE {100 * ece:.2f} %")
    axes[0][0].set_ylabel("accuracy")
    axes[0][0].legend(loc="upper left")
    save(figure, args.out)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, draw in (("curves", draw_curves), ("cost", draw_cost)):
        sub = kinds.add_parser(kind)
        sub.add_argument("--root", type=Path, nargs="+", default=[Path("./save")])
        sub.add_argument("--dataset", help="runs on this data set only")
        sub.add_argument("--only", default="", help="these methods or networks, as kd,simkd")
        sub.set_defaults(draw=draw)
    for kind, draw in (("correlation", draw_correlation), ("tsne", draw_tsne), ("reliability", draw_reliability)):
        sub = kinds.add_parser(kind)
        sub.add_argument("--path", type=Path, nargs="+", required=True, help="checkpoints")
        sub.add_argument("--dataset", default="cifar100")
        sub.add_argument("--data_folder", default="../data/")
        sub.add_argument("--image_size", type=int)
        add_as_trained(sub)
        sub.add_argument("--gpu_id", default="0")
        sub.add_argument("--images", type=int, help="stop after this many test images")
        sub.set_defaults(draw=draw)
        if kind == "correlation":
            sub.add_argument("--path_t", type=Path, required=True, help="the teacher's checkpoint")
        if kind == "tsne":
            sub.add_argument("--classes", type=int, default=10, help="how many classes to show (default 10)")
        if kind == "reliability":
            sub.add_argument("--bins", type=int, default=15, help="bins of equal width (default 15)")
    for sub in kinds.choices.values():
        sub.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(normalised(argv))
    args.draw(args)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
