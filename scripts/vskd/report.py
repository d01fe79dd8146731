#!/usr/bin/env python3
"""Write the tables and pictures of a study on action recordings from its run folders:

    python scripts/vskd/report.py --root SAVE --data_folder UTD [--berkeley_root SAVE --berkeley_folder BERKELEY]

Writes OUT_utd_mhad_short.md (with a row for extremely randomised trees on statistics of the accelerometer),
OUT_utd_mhad_short_confusion.png, OUT_utd_mhad_short_cost.md and OUT_berkeley_short.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import atomic_write_text
from core.protocols import UserError
from dataset import dataset_dict
from dataset.base import data_options
from dataset.recordings.actions import ActionData
from dataset.recordings.pairs import SENSOR
from helper.deploy.checkpoint_page import pair_rows
from helper.deploy.pictures import draw_confusion, pyplot, save
from helper.deploy.student import load_student
from helper.evaluation.metrics import confusion_matrix
from helper.machine.program import ScriptParser, run_script
from helper.tables.runs import Run, chosen_runs, last_checkpoint, mean_std, network
from helper.tables.table import table
from helper.tables.writers import as_markdown
from scripts.export_onnx import MEASURED, as_table, exported
from scripts.vskd.extra_trees import TREES, extra_trees

SEEDS = (0, 1, 2)


def baseline_row(data: ActionData, header: Sequence[str]) -> list[str]:
    """The trees in the columns of the table."""
    scores = [extra_trees(data, seed)[0] for seed in SEEDS]
    cells = {
        "method": f"ExtraTrees, {TREES} trees on {data.modality_of[SENSOR]} statistics",
        "network": "scikit-learn",
        "last epoch": mean_std(scores),
        "x chance": f"{sum(scores) / len(scores) * data.num_classes / 100:.1f}",
        "runs": str(len(scores)),
    }
    return [cells.get(name, "") for name in header]


def write_table(runs: Sequence[Run], data: ActionData, out: Path, title: str, about: str) -> None:
    header, rows, notes = table(runs)
    rows = [*rows, baseline_row(data, header)]
    origins = f"The trees were tested on the same recordings: {data.evaluated_on}. They have no epochs: one fit a seed."
    atomic_write_text(out, f"# {title}\n\n{about}\n\n{as_markdown(header, rows, [*notes, origins])}")
    print(out)


@torch.no_grad()
def confusion(run: Run, data: ActionData) -> Tensor:
    """[K, K] counts on the tested recordings: rows are true classes, columns what the last epoch's network says."""
    net = load_student(last_checkpoint(run)).net
    batches = [(b.target, net(b.inputs)["logits"].argmax(1)) for b in data.test_loader(64, device=torch.device("cpu"))]
    return confusion_matrix(*map(torch.cat, zip(*batches, strict=True)), data.num_classes)


def draw(matrices: Mapping[str, Tensor], classes: Sequence[str], out: Path) -> None:
    """Shares of each true class, side by side. Names stand on both axes, and below each matrix its largest
    confusions."""
    count, size = len(matrices), 2.2 + 0.21 * len(classes)
    figsize = (size * count + 2.2, size + 3.4)
    figure, axes = pyplot().subplots(1, count, sharey=True, squeeze=False, figsize=figsize, layout="constrained")
    for panel, (title, counts) in zip(axes[0], matrices.items(), strict=True):
        shown = draw_confusion(panel, counts, classes)
        panel.set_title(f"{title}\n{100 * float(counts.trace() / counts.sum()):.1f} % right", fontsize=11)
        pairs = pair_rows(counts, classes)[:6]
        worst = "\n".join(f"{t} → {p}: {n} of {counts[classes.index(t)].sum()}" for t, p, n in pairs)
        panel.set_xlabel(f"predicted\n\nlargest confusions, true → predicted\n{worst}", fontsize=9)
        share = counts / counts.sum(1, keepdim=True).clamp(min=1)
        for t, p in (share >= 0.1).nonzero().tolist():  # percent, where it is not a trifle
            colour = "black" if share[t, p] > 0.55 else "white"
            panel.text(p, t, f"{100 * share[t, p]:.0f}", ha="center", va="center", fontsize=6, color=colour)
    figure.colorbar(shown, ax=list(axes[0]), shrink=0.5, label="share of the true class")
    save(figure, out)


def chosen(runs: Sequence[Run], network: str) -> dict[str, list[Run]]:
    """Title -> runs of the teacher and of one student network, alone first."""
    out: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda r: (not r.is_teacher, r.identity.get("distill") != "vanilla")):
        if run.is_teacher:
            out.setdefault(f"teacher: {run.identity['model']}", []).append(run)
        elif run.identity["model_s"] == network:
            name = "alone" if run.identity["distill"] == "vanilla" else run.identity["distill"]
            out.setdefault(f"{network}, {name}", []).append(run)
    return out


def opened(name: str, folder: Path, runs: Sequence[Run], cache: Path | None) -> ActionData:
    """The data of the runs, with every modality one of them reads."""
    first = next((r for r in runs if not r.is_teacher), runs[0]).identity
    read = [first.get(k) for k in ("modality", "modality_s", "modality_t")]
    options = data_options(
        folder,
        image_size=first["image_size"],
        modality=tuple(m for m in read if m),
        data_split=first["data_split"],
        num_segments=first["num_segments"],
        window=first["window"],
        clip_cache=cache,
    )
    return dataset_dict[name](options)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add("--root", type=Path, required=True, help="root of the runs on UTD-MHAD", metavar="FOLDER")
    add("--data_folder", type=Path, required=True, help="folder of UTD-MHAD", metavar="FOLDER")
    add("--clip_cache", type=Path, default=Path("./cache/clips"), help="decoded frames", metavar="FOLDER")
    add("--network", default="resnet18_gaf", help="student of the confusion matrix")
    add("--berkeley_root", type=Path, help="root of the runs on Berkeley MHAD")
    add("--berkeley_folder", type=Path, help="folder of Berkeley MHAD")
    add("--out", default="results/vskd", help="beginning of the files' names", metavar="FILE")
    args = parser.parse_args(argv)
    if (args.berkeley_root is None) != (args.berkeley_folder is None):
        raise UserError("--berkeley_root and --berkeley_folder belong together: give both, or none")
    runs = chosen_runs([args.root], "utd_mhad")
    others = chosen_runs([args.berkeley_root], "berkeley_mhad") if args.berkeley_root else []
    data = opened("utd_mhad", args.data_folder, runs, args.clip_cache)
    stem = Path(f"{args.out}_utd_mhad_short")
    stem.parent.mkdir(parents=True, exist_ok=True)
    about = (
        f"Written by scripts/vskd/report.py from the runs of scripts/vskd/short_study.sh. Split: {data.evaluated_on}; "
        f"{len(data.train)} recordings to train on, {len(data.test)} to test. The students read the sensor alone when "
        "tested. One teacher, from scratch, taught all of them."
    )
    write_table(runs, data, Path(f"{stem}.md"), "UTD-MHAD: a video network teaches sensor networks", about)
    groups = chosen(runs, args.network)
    matrices = {
        f"{title} ({len(group)} seed{'s' * (len(group) > 1)})": torch.stack(
            [confusion(run, data) for run in group]
        ).sum(0)
        for title, group in groups.items()
    }
    draw(matrices, data.classes, Path(f"{stem}_confusion.png"))
    nets = {network(r): r for r in runs if r.identity["trial"] == "0"}
    with tempfile.TemporaryDirectory() as folder:
        costs = [exported(load_student(last_checkpoint(run)), Path(folder))[1] for _, run in sorted(nets.items())]
    cpu = runs[0].env["cpu"]
    note = f"{MEASURED.format(30)}; {cpu}. The Gramian field is part of the network."
    atomic_write_text(Path(f"{stem}_cost.md"), f"# What teacher and students cost\n\n{as_table(costs)}\n\n{note}\n")
    if others:
        berkeley = opened("berkeley_mhad", args.berkeley_folder, others, None)
        about = (
            f"Written by scripts/vskd/report.py. Split: {berkeley.evaluated_on}; {len(berkeley.train)} recordings to "
            f"train on, {len(berkeley.test)} to test; Shimmer 1 alone."
        )
        write_table(others, berkeley, Path(f"{args.out}_berkeley_short.md"), "Berkeley MHAD: a sensor network", about)


if __name__ == "__main__":
    run_script(main)
