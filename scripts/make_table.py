#!/usr/bin/env python3
"""Tables from run folders: python scripts/make_table.py --root ./save [--dataset digits] [--out FILE]

One row per (student, method, teacher, settings); repetitions that differ in trial and seed alone are averaged. Numbers
come from metrics.jsonl and parameters.json of finished runs; nothing is typed.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from distiller_zoo import method_dict
from helper.build import chain_of
from helper.checkpoint import atomic_write_text, make_folder, read_checkpoint
from helper.flags import COMMON, STUDENT, TEACHER
from helper.flags_video import STUDENT_VIDEO, VIDEO
from helper.options import parse, published_name
from helper.protocols import UserError
from helper.published import Cell, read_table
from helper.reporting import clock
from scripts.table_writers import add_published, as_latex, pivot

REPETITION = ("trial", "seed")  # what two runs of one cell may differ in
# settings that make networks and methods what they are; every other one is part of the protocol
OF_A_NETWORK = {"model", "model_s", "modality", "modality_s", "modality_t", "pretrained_backbone"}
OF_A_METHOD = {"distill", "weight", "cls", "div", "beta", "kd_T", "logit_stand", "init_epochs", "frame_logits"}
OF_A_TEACHER = {"teacher_weight", "fold_teacher", "teacher_dropout"}
APART = {*REPETITION, "deterministic", "dali", "nesterov", "eval_precision"}  # the last two: see protocol()
SHARED = {  # setting of the protocol -> its default, which is what a run did that is older than the setting
    f.dest: f.default
    for f in (*COMMON, *TEACHER, *STUDENT, *VIDEO, *STUDENT_VIDEO)
    if f.result and f.dest not in OF_A_NETWORK | OF_A_METHOD | OF_A_TEACHER | APART
}
SPELLED_OUT = ("dataset", "epochs", "batch_size", "learning_rate", "lr_decay_epochs", "lr_decay_rate", "schedule")
SPELLED_OUT += ("lr_min", "weight_decay", "precision")  # by describe_protocol(), whatever their values
CHECKSUMS = {"data": "training data", "test_data": "test data", "teacher": "teacher's weights"}  # in an identity
NAMELESS = ("folder", "video")  # data sets whose name does not tell what they hold


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
        """What repetitions share. A share of the training set is drawn by seed, so its checksum is no part of it."""
        own = {*REPETITION, "data"} if self.identity.get("few_ratio", 1) < 1 else REPETITION
        return json.dumps({k: v for k, v in self.identity.items() if k not in own}, sort_keys=True)


def read_run(folder: Path) -> Run | None:
    """None if the run is not finished. Raises UserError if a file in it is not as the tool writes it."""
    if not (folder / "parameters.json").exists():
        return None
    try:
        args, parameters, env = (json.loads((folder / f"{n}.json").read_text()) for n in ("args", "parameters", "env"))
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        if not rows:
            raise ValueError("metrics.jsonl is empty")
        return Run(folder, args["identity"], parameters, rows, env)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} is not a run folder as this tool writes it ({error!r})") from error


def run_folders(root: Path) -> list[Path]:
    """Finished or not; of the runs below a root, without the short names that are links to them."""
    return sorted(
        p
        for kind in ("teachers", "students")
        for p in (root / kind / "models").glob("*")
        if p.is_dir() and not p.is_symlink()
    )


def find_runs(root: Path, dataset: str | None) -> list[Run]:
    runs = [run for run in map(read_run, run_folders(root)) if run is not None]
    return [r for r in runs if dataset is None or r.identity["dataset"] == dataset]


def chosen_runs(roots: Sequence[Path], dataset: str | None, only: str = "") -> list[Run]:
    """Finished runs below the roots; how many are not finished is said on standard error.

    only: methods or networks, separated by commas. UserError where nothing is left.
    """
    runs = [run for root in roots for run in find_runs(root, dataset)]
    folders = [folder for root in roots for folder in run_folders(root) if (folder / "args.json").exists()]
    unfinished = sum(not (folder / "parameters.json").exists() for folder in folders)
    what = f"finished run{f' on {dataset}' if dataset else ''} below {', '.join(map(str, roots))}"
    more = f", {unfinished} unfinished" if unfinished else ""
    if not runs:
        raise UserError(f"no {what}{more}: train something first, or name other --root folders")
    words = {w.strip() for w in only.split(",") if w.strip()}
    runs = [run for run in runs if not words or words & names_of(run)]
    if not runs:
        raise UserError(f"--only {only} names no method and no network of a {what}")
    if unfinished:
        print(f"left out: {unfinished} unfinished run{'s' * (unfinished > 1)}", file=sys.stderr)
    return runs


def names_of(run: Run) -> set[str]:
    """Words that choose a run: its network, and its method under each of its names."""
    if run.is_teacher:
        return {network(run), "teacher"}
    distill = run.identity["distill"]
    return {network(run), distill, published_name(distill), *(["student alone"] if distill == "vanilla" else [])}


def mean_std(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def method_settings(identity: dict[str, Any]) -> str:
    """The method's published name and what of its settings is off its default; tell_apart() adds what alike cells
    differ in."""
    if "model" in identity:
        return "teacher"
    name = "student alone" if identity["distill"] == "vanilla" else published_name(identity["distill"])
    return name + "".join(f", {told(identity, k)}" for k in off_default(identity))


def told(identity: dict[str, Any], name: str) -> str:
    """A setting as the command line has it."""
    value = identity[name]
    return f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"


def off_default(identity: dict[str, Any]) -> list[str]:
    """Weights and own settings that are not those of the method under its protocol; none for a method unknown here."""
    distill = identity["distill"]
    if any(part not in method_dict for part in distill.split("+")):
        return []
    protocol = identity.get("protocol") or "simkd"
    theirs = parse(["--distill", distill, "--protocol", protocol], teacher=False)
    names = ["cls", "div", "beta", "kd_T", "logit_stand", "weight", *theirs.method_flags]
    if distill == "vanilla":  # the weights of terms that it does not have
        names = ["cls"]
    said = {pair.partition("=")[0] for pair in identity.get("weight") or ()}
    names = [k for k in names if k not in said and not (k == "beta" and distill in said)]  # --weight has set these
    if len(chain_of(theirs.method)) > 1:
        names.append("init_epochs")
    defaults = json.loads(json.dumps({k: theirs.values[k] for k in names}))
    return [k for k in names if k in identity and identity[k] != defaults[k]]


def num_classes(run: Run) -> int:
    """Recorded with the run; in older ones, with its checkpoint."""
    if "num_classes" in run.parameters:
        return run.parameters["num_classes"]
    (best,) = run.folder.glob("*_best.pth")
    return read_checkpoint(best).meta["num_classes"]


def from_first_to_last(group: Sequence[Run], column: str) -> str:
    """Means over the runs of a column of metrics.jsonl, in the first and the last epoch of the method's own stage."""
    ends = []
    for run in group:
        rows = [row for row in run.rows if row["stage"] == run.rows[-1]["stage"]]
        ends.append((rows[0].get(column), rows[-1].get(column)))
    if any(value is None for pair in ends for value in pair):
        return ""
    return " → ".join(f"{statistics.mean(values):.3g}" for values in zip(*ends, strict=True))


def own_terms(group: Sequence[Run]) -> str:
    """The unweighted terms of every method of the cell: NAME, and NAME_PART where it has several."""
    parts = group[0].identity.get("distill", "").split("+")
    shown = []
    for part in parts:
        columns = [k for k in group[0].rows[-1] if k == f"train_{part}" or k.startswith(f"train_{part}_")]
        for column in sorted(columns):
            short = column.removeprefix(f"train_{part}").removeprefix("_")
            named = len(parts) > 1 or (len(columns) > 1 and not short)
            if text := from_first_to_last(group, column):
                shown.append(" ".join(([published_name(part)] if named else []) + ([short] if short else []) + [text]))
    return ", ".join(shown)


def side_by_side(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A note on runs that shared one process, and so the order of the data."""
    methods = {r.folder.name: method_settings(r.identity) for g in groups for r in g}
    together = {
        tuple(dict.fromkeys(methods[name] for name in r.parameters.get("lanes", ()) if name in methods))
        for g in groups
        for r in g
    }
    lists = [", ".join(names) for names in sorted(together) if len(names) > 1]
    if not lists:
        return []
    return [f"Trained side by side, on the same batches in the same order, for each seed: {'; '.join(lists)}."]


def checksums(groups: Sequence[Sequence[Run]], rows: Sequence[Sequence[str]], protocols: Sequence[str]) -> list[str]:
    """A note on what the hexadecimal numbers are that a label or a protocol shows."""
    identities, labels = [run.identity for group in groups for run in group], [row[0] for row in rows]
    told_apart = [
        f"`{name}` of the {what}"
        for name, what in CHECKSUMS.items()
        if any(f", {told(i, name)}" in label for i in identities if i.get(name) for label in labels)
    ]
    shown = told_apart + ["`test set` of the test data"] * any(", test set " in text for text in protocols)
    return [f"Checksums, equal for equal contents: {', '.join(shown)}."] if shown else []


def protocol(run: Run) -> dict[str, Any]:
    """What must be equal for two numbers to be comparable, beside method and networks."""
    found = {k: run.identity.get(k, default) for k, default in SHARED.items()}
    if run.identity.get("nesterov"):
        found["optimizer"] = "nesterov"
    in_training = run.identity.get("eval_precision") == "train"  # otherwise the last epoch is evaluated in float32
    found["evaluated in"] = run.identity.get("precision") if in_training else "fp32"
    found["processes"] = run.parameters.get("processes", 1)  # each normalises its own share of a batch
    if found["dataset"] in NAMELESS:
        found["test set"] = run.identity.get("test_data")
    return found | {"evaluated on": run.parameters.get("evaluated_on", "test")}


def refuse_shared_order(group: Sequence[Run]) -> None:
    """UserError where repetitions had one seed: they saw the same batches, and their deviation would say too little."""
    seeds = [run.identity["seed"] for run in group]
    if len(set(seeds)) < len(seeds):
        names = ", ".join(run.folder.name for run in group)
        raise UserError(f"no standard deviation over runs that share seed and data order: {names}")


def describe_protocol(run: Run) -> str:
    """All of protocol() in a line; what is at its default goes without saying."""
    p = protocol(run)
    rate = f"times {p['lr_decay_rate']:g} after {p['lr_decay_epochs']}"
    if p["schedule"] != "step":
        rate = f"on a {p['schedule']} to {p['lr_min']:g}"
    several = f" over {p['processes']} processes" if p["processes"] > 1 else ""
    text = (
        f"{p['dataset']}, {p['epochs']} epochs, batch {p['batch_size']}{several}, lr {p['learning_rate']:g} {rate}, "
        f"wd {p['weight_decay']:g}, {p['precision']}, evaluated on {p['evaluated on']} in {p['evaluated in']}"
    )
    others = {k: p[k] for k, default in SHARED.items() if k not in SPELLED_OUT and p[k] != default}
    others |= {k: p[k] for k in ("test set",) if k in p}
    return text + "".join(f", {k} {value}" for k, value in others.items())


def tell_apart(groups: list[list[Run]]) -> list[str]:
    """For cells that would look alike: the settings in which they differ."""
    labels = [(method_settings(g[0].identity), network(g[0]), g[0].parameters.get("arch_t")) for g in groups]
    out = []
    for i, group in enumerate(groups):
        alike = [groups[j][0].identity for j in range(len(groups)) if labels[j] == labels[i]]
        mine = group[0].identity
        different = [k for k in mine if k not in REPETITION and any(other.get(k) != mine[k] for other in alike)]
        different = [k for k in different if mine[k] is not None and f", {told(mine, k)}" not in labels[i][0]]
        out.append(labels[i][0] + "".join(f", {told(mine, k)}" for k in different))
    return out


def network(run: Run) -> str:
    return run.identity["model"] if run.is_teacher else run.identity["model_s"]


def grouped(runs: Iterable[Run]) -> list[list[Run]]:
    """Repetitions together. The teachers come first, then the students, alone before distilled."""
    cells: dict[str, list[Run]] = {}
    for run in runs:
        cells.setdefault(run.cell, []).append(run)
    groups = sorted(cells.values(), key=lambda g: (not g[0].is_teacher, network(g[0]), order(g[0])))
    for group in groups:
        refuse_shared_order(group)
    return groups


def against_pairs(runs: Iterable[Run], published: Sequence[Cell] = ()) -> tuple[list[str], list[list[str]], list[str]]:
    """(header, rows, notes): methods against pairs of teacher and student, one protocol per column."""
    groups = grouped(runs)

    def entry(group: Sequence[Run]) -> str:
        return f"{mean_std(last(group))} ({best(group):.2f}) [{len(group)}]"

    return pivot(groups, tell_apart(groups), describe_protocol, entry, published)


def table(runs: Iterable[Run], published: Sequence[Cell] = ()) -> tuple[list[str], list[list[str]], list[str]]:
    """(header, rows, notes), one row per cell. published: what to print beside the same experiment of ours."""
    groups = grouped(runs)
    alone = {
        (network(g[0]), json.dumps(protocol(g[0]))): statistics.mean(last(g))
        for g in groups
        if g[0].identity.get("distill") == "vanilla"
    }
    protocols = list(dict.fromkeys(describe_protocol(g[0]) for g in groups))
    header = ["method", "network", "teacher", "last epoch", "(best)", "gain", "x chance", "loss", "own term", "runs"]
    header += ["parameters", "MACs", "time"]
    if len(protocols) > 1:
        header.append("protocol")
    rows = []
    for group, label in zip(groups, tell_apart(groups), strict=True):
        first, p = group[0], group[0].parameters
        base = alone.get((network(first), json.dumps(protocol(first))))
        comparable = base is not None and not first.is_teacher and first.identity["distill"] != "vanilla"
        teacher = (
            ""
            if first.is_teacher or not p.get("arch_t")
            else p["arch_t"] + (f" {acc:.2f}" if (acc := p.get("teacher_acc")) is not None else "")
        )
        row = [
            label,
            network(first),
            teacher,
            mean_std(last(group)),
            f"({best(group):.2f})",
            f"{statistics.mean(last(group)) - base:+.2f}" if comparable else "",
            f"{statistics.mean(last(group)) * num_classes(first) / 100:.1f}",
            from_first_to_last(group, "train_loss"),
            own_terms(group),
            str(len(group)),
            f"{p['Deployed params']:.3f} M",
            f"{p['Deployed MACs']:.1f} M",
            clock(statistics.mean(r.parameters["Total time"] * 3600 for r in group)),
        ]
        if len(protocols) > 1:
            row.append(f"[{protocols.index(describe_protocol(first)) + 1}]")
        rows.append(row)
    hardware = dict.fromkeys(
        f"{r.env['cpu']}, {threads(r)}" if not r.env["gpus"] else r.env["gpus"][0] for g in groups for r in g
    )
    numbered = len(protocols) > 1
    notes = [f"Protocol{f' [{i + 1}]' if numbered else ''}: {text}." for i, text in enumerate(protocols)]
    notes += [
        "Last-epoch top-1, mean ± standard deviation over runs; best epoch in brackets, selected on what it is "
        "reported on. Parameters and MACs are those at test time. Gain is over the student alone under the same "
        "protocol. Chance is one in as many as there are classes. Loss and own term: means over train in the first and "
        "the last epoch; the loss is weighted as in that epoch (some weights rise with time), the method's own term is "
        "not.",
        *checksums(groups, rows, protocols),
        *side_by_side(groups),
        f"Seeds: {', '.join(map(str, sorted({r.identity['seed'] for g in groups for r in g})))}.",
        f"Hardware: {'; '.join(hardware)}.",
    ]
    if published:
        add_published(header, rows, notes, groups, published)
    return header, rows, notes


def threads(run: Run) -> str:
    count = run.env["cpu_threads"]
    each = " per process" if run.parameters.get("processes", 1) > 1 else ""
    return f"{count} thread{'' if count == 1 else 's'}{each}"


def order(run: Run) -> tuple[int, str]:
    return (0 if run.identity.get("distill") in (None, "vanilla") else 1, run.identity.get("distill", ""))


def last(group: Sequence[Run]) -> list[float]:
    return [r.rows[-1]["test_acc"] for r in group]


def best(group: Sequence[Run]) -> float:
    return statistics.mean(r.parameters["best"]["test_acc"] for r in group)


def as_markdown(header: list[str], rows: list[list[str]], notes: list[str]) -> str:
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([line(header), rule, *map(line, rows), "", *[f"{n}\n" for n in notes]])


def as_csv(header: list[str], rows: list[list[str]], notes: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


FORMATS = {"markdown": as_markdown, "csv": as_csv, "latex": as_latex}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, nargs="+", default=[Path("./save")], help="roots of runs (default ./save)")
    parser.add_argument("--dataset", help="runs on this data set only")
    parser.add_argument("--only", default="", help="these methods or networks, as kd,simkd,resnet8")
    parser.add_argument("--format", choices=FORMATS, default="markdown")
    parser.add_argument("--published", nargs="+", default=[], help="tables whose numbers stand beside ours, as simkd")
    parser.add_argument("--pivot", action="store_true", help="methods against pairs, one protocol per column")
    parser.add_argument("--out", type=Path, help="write here instead of to standard output")
    parser.add_argument("--title", help="a heading above a Markdown table")
    args = parser.parse_args(argv)
    runs = chosen_runs(args.root, args.dataset, args.only)
    published = [cell for name in args.published for cell in read_table(name).cells]
    text = FORMATS[args.format](*(against_pairs if args.pivot else table)(runs, published))
    if args.title and args.format == "markdown":
        text = f"# {args.title}\n\n{text}"
    if args.out:
        make_folder(args.out.parent)
        atomic_write_text(args.out, text)
        print(f"wrote {args.out}: {len(runs)} run{'s' * (len(runs) > 1)}")
    else:
        print(text)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
