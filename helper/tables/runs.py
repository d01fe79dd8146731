"""Finished runs, read back from their folders."""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.files import read_json
from core.log import progress
from core.protocols import UserError
from dataset import dataset_dict
from helper.networks.checkpoint import read_checkpoint
from helper.options.naming import published_name
from helper.runs.folder import file_name, is_row, rows_checksum, wrong_rows

REPETITION = ("trial", "seed")  # settings in which two runs of one cell may differ
PROBE = re.compile("(linear|means) probe [0-9a-f]+")  # of a teacher, with the digest of what it was fitted to


@dataclass(frozen=True)
class Run:
    """One finished run. identity: every setting that changes what it computed."""

    folder: Path
    identity: dict[str, Any]
    parameters: dict[str, Any]
    rows: list[dict[str, Any]]
    env: dict[str, Any]

    @property
    def is_teacher(self) -> bool:
        return "model" in self.identity

    @property
    def cell(self) -> str:
        """The settings that repetitions share. --few_ratio draws by seed, so its checksum, that of a probe fitted to it
        and the folder of the remaining images are not among them."""
        shared = {k: v for k, v in self.identity.items() if k not in REPETITION}
        if self.identity.get("few_ratio", 1) < 1:
            shared.pop("data", None)
            shared["teacher"] = PROBE.sub(r"\1 probe", shared.get("teacher") or "")
            shared["unlabelled"] = bool(shared.get("unlabelled"))
        return json.dumps(shared, sort_keys=True)


# fields that tables need
SHAPES: dict[str, dict[str, Any]] = {
    "args": {"identity": dict},
    "parameters": {"best": dict, "Total time": (int, float)},
    "env": {},
}


def read_run(folder: Path) -> Run | None:
    """None if the run is not finished. UserError if a file in it is damaged."""
    if not (folder / "parameters.json").exists():
        return None
    way_out = "restore the file, or train the run again with --overwrite"
    args, parameters, env = (read_json(folder / f"{n}.json", s, way_out) for n, s in SHAPES.items())
    if not isinstance(parameters["best"].get("test_acc"), int | float):
        raise UserError(f"{folder / 'parameters.json'} is damaged (its best has no test_acc): {way_out}")
    metrics = folder / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise UserError(f"cannot read {metrics}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{metrics} is damaged (a line is not JSON): {way_out}") from error
    if not rows or not all(map(is_row, rows)):
        raise UserError(f"{metrics} is {'damaged (a line is no row)' if rows else 'empty'}: {way_out}")
    if wrong := wrong_rows(rows):
        raise UserError(f"{metrics} {wrong}: {way_out}")
    if parameters.get("rows", rows_checksum(rows)) != rows_checksum(rows):
        raise UserError(f"{metrics} is damaged (its rows do not match their checksum): {way_out}")
    return Run(folder, args["identity"], parameters, rows, env)


def run_folders(root: Path) -> list[Path]:
    """Folders of runs below a root, finished or not, without the links of short names, which lead to the folder next
    to them; a run that was moved elsewhere and linked back counts."""
    return sorted(
        p
        for kind in ("teachers", "students")
        for p in (root / kind / "models").glob("*")
        if p.is_dir() and not (p.is_symlink() and p.readlink().parent == Path())
    )


def find_runs(root: Path, dataset: str | None) -> list[Run]:
    """The finished runs below a folder, on one data set if it is given."""
    runs = [run for run in map(read_run, progress(run_folders(root), f"runs below {root}")) if run is not None]

    def own(name: str) -> str:
        return dataset_dict.aliases.get(name, name)

    return [r for r in runs if dataset is None or own(r.identity["dataset"]) == own(dataset)]


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Add the flags whose values are chosen_runs()'s arguments."""
    text = "roots of runs (default ./save)"
    parser.add_argument("--root", type=Path, nargs="+", default=[Path("./save")], help=text, metavar="FOLDER")
    parser.add_argument("--dataset", help="runs on this data set only", metavar="NAME")
    text = "only these methods or networks, such as kd,simkd,resnet8"
    parser.add_argument("--only", default="", help=text, metavar="NAMES")


def chosen_runs(roots: Sequence[Path], dataset: str | None, only: str = "") -> list[Run]:
    """Finished runs below the roots. The numbers of unfinished runs and of trial runs (--max_steps), which are left out
    unless there are no others, are printed to standard error.

    only: methods or networks, separated by commas. UserError if nothing is left.
    """
    runs = [run for root in roots for run in find_runs(root, dataset)]
    folders = [folder for root in roots for folder in run_folders(root) if (folder / "args.json").exists()]
    unfinished = sum(not (folder / "parameters.json").exists() for folder in folders)
    what = f"finished run{f' on {dataset}' if dataset else ''} below {', '.join(map(str, roots))}"
    more = f", {unfinished} unfinished" if unfinished else ""
    if not runs:
        raise UserError(f"no {what}{more}: train something first, or give other --root folders")
    words = {w.strip() for w in only.split(",") if w.strip()}
    runs = [run for run in runs if not words or words & names_of(run)]
    if not runs:
        raise UserError(f"--only {only} matches no method and no network of a {what}")
    trials = [run for run in runs if run.identity.get("max_steps")]
    if trials and len(trials) < len(runs):
        runs = [run for run in runs if not run.identity.get("max_steps")]
        print(f"left out: {len(trials)} trial run{'s' * (len(trials) > 1)} (--max_steps)", file=sys.stderr)
    if unfinished:
        print(f"left out: {unfinished} unfinished run{'s' * (unfinished > 1)}", file=sys.stderr)
    return runs


def names_of(run: Run) -> set[str]:
    """Words that match a run: its network, and all names of its method."""
    if run.is_teacher:
        return {network(run), "teacher"}
    distill = run.identity["distill"]
    return {network(run), distill, published_name(distill), *(["student alone"] if distill == "vanilla" else [])}


def mean_std(values: Sequence[float], sign: str = "") -> str:
    """sign: + shows that of a positive mean, too."""
    mean = f"{statistics.mean(values):{sign}.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def num_classes(run: Run) -> int:
    """Recorded with the run; for older runs, with its checkpoint."""
    if "num_classes" in run.parameters:
        return run.parameters["num_classes"]
    (best,) = run.folder.glob("*_best.pth")
    return read_checkpoint(best).meta["num_classes"]


def refuse_shared_order(group: Sequence[Run]) -> None:
    """UserError if repetitions had the same seed: they saw the same batches, so their deviation would be too small."""
    seeds = [run.identity["seed"] for run in group]
    if len(set(seeds)) < len(seeds):
        names = ", ".join(run.folder.name for run in group)
        raise UserError(
            f"these runs share seed and data order, so they have no standard deviation: {names}; leave one out"
        )


def network(run: Run) -> str:
    """The registry name of the trained network."""
    return run.identity["model"] if run.is_teacher else run.identity["model_s"]


def last_checkpoint(run: Run) -> Path:
    """The path of a run's last state."""
    return run.folder / f"{file_name(network(run))}_last.pth"


def grouped(runs: Iterable[Run]) -> list[list[Run]]:
    """Groups of repetitions: first teachers, then students, alone before distilled."""
    cells: dict[str, list[Run]] = {}
    for run in runs:
        cells.setdefault(run.cell, []).append(run)
    groups = sorted(cells.values(), key=lambda g: (not g[0].is_teacher, network(g[0]), order(g[0])))
    for group in groups:
        refuse_shared_order(group)
    return groups


def order(run: Run) -> tuple[int, str]:
    """A key for sorting: students alone first, then by method."""
    return (0 if run.identity.get("distill") in (None, "vanilla") else 1, run.identity.get("distill", ""))


def evaluated(group: Sequence[Run]) -> list[list[dict[str, Any]]]:
    """Rows of every run, of the epochs after which all of them were evaluated."""
    rows = [{row["epoch"]: row for row in run.rows if "test_acc" in row} for run in group]
    shared = sorted(set.intersection(*map(set, rows)))
    return [[of_run[epoch] for epoch in shared] for of_run in rows]


def last(group: Sequence[Run]) -> list[float]:
    """Top-1 of the last epoch of every run, in percent."""
    return [r.rows[-1]["test_acc"] for r in group]


def best(group: Sequence[Run]) -> float:
    """Mean over the runs of the best top-1, in percent."""
    return statistics.mean(r.parameters["best"]["test_acc"] for r in group)
