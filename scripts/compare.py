#!/usr/bin/env python3
"""Compare runs: python scripts/compare.py RUN RUN ... [--out curves.png]

A RUN is a run's folder; runs that differ only in trial and seed are repetitions of one cell. Every cell is compared
with that of the first RUN: the settings that differ; the difference of the last epochs over the seeds that both have,
with its 95 % t interval; the classes that gained and lost most, if the networks and their data are available; with
--out the curves in one figure.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.option import whole
from core.protocols import UserError
from dataset import dataset_dict
from helper.deploy.as_trained import options_as_trained
from helper.evaluation.metrics import confusion_matrix
from helper.machine.program import ScriptParser, run_script
from helper.tables.compare import comparison, differing
from helper.tables.runs import Run, grouped, last_checkpoint, read_run
from helper.tables.table import tell_apart
from helper.tables.writers import as_markdown
from scripts import plot


def opened(folders: Sequence[Path]) -> list[Run]:
    runs = []
    for folder in dict.fromkeys(path.resolve() for path in folders):
        run = read_run(folder)
        if run is None:
            raise UserError(
                f"{folder} holds no finished run (it has no parameters.json): give folders of finished runs"
            )
        runs.append(run)
    sets = {run.identity["dataset"] for run in runs}
    if len(sets) > 1:
        raise UserError(f"runs on different data sets cannot be compared: {', '.join(sorted(sets))}")
    return runs


def cells(runs: Sequence[Run]) -> list[list[Run]]:
    """Repetitions together, in the order in which their first run was named."""
    places = {run.folder: i for i, run in enumerate(runs)}
    return sorted(grouped(runs), key=lambda group: min(places[run.folder] for run in group))


def recall(run: Run, args: argparse.Namespace) -> tuple[list[str], Tensor]:
    """Names of the classes; share in percent of each that the network of the last epoch gets right [K]."""
    path, folder = last_checkpoint(run), args.data_folder or run.parameters["data_folder"]
    data = dataset_dict[run.identity["dataset"]](options_as_trained(path, Path(folder), num_workers=0))
    _, logits, _, labels = plot.outputs(path, data, args.gpu_id)
    counts = confusion_matrix(labels, logits.argmax(1), data.num_classes)
    return list(map(str, data.classes)), 100 * counts.diagonal() / counts.sum(1).clamp_min(1)


def gains_by_class(groups: Sequence[Sequence[Run]], labels: Sequence[str], args: argparse.Namespace) -> list[str]:
    """A line for each cell but the first; one that says why where no prediction can be made."""
    try:
        found = [[recall(run, args) for run in group] for group in groups]
    except UserError as error:
        return [f"No gains by class: {error}."]
    names = found[0][0][0]
    base = torch.stack([shares for _, shares in found[0]]).mean(0)
    lines = [f"Gains over {labels[0]} by class, in points of the last epoch:"]
    for label, group in zip(labels[1:], found[1:], strict=True):
        gains = torch.stack([shares for _, shares in group]).mean(0) - base
        order = gains.argsort(descending=True).tolist()
        shown = order if len(order) <= 2 * args.classes else order[: args.classes] + order[-args.classes :]
        lines.append(f"  {label}: " + ", ".join(f"{names[k]} {gains[k]:+.1f}" for k in shown))
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs")
    add("--out", type=Path, help="picture of the curves: png, pdf or svg", metavar="FILE")
    add("--classes", **whole(0), default=5, help="classes with the largest gains and losses to list; 0: none")
    add("--data_folder", help="folder of the data sets (default: as in training)", metavar="FOLDER")
    add("--gpu_id", default="0", help="GPU to use (default 0; without CUDA the CPU)", metavar="GPUS")
    args = parser.parse_args(argv)
    groups = cells(opened(args.runs))
    if len(groups) < 2:
        raise UserError("these runs are repetitions of one cell: give runs that differ in more than trial and seed")
    labels = tell_apart(groups)
    rows = [[name, *values] for name, values in differing(groups)]
    print(as_markdown(["setting", *labels], rows) if rows else "The settings are the same.\n")
    print(as_markdown(*comparison(groups, labels)))
    if args.classes:
        print("\n".join(gains_by_class(groups, labels, args)))
    if args.out is not None:
        plot.curves(list(zip(labels, groups, strict=True)), args.out)


if __name__ == "__main__":
    run_script(main)
