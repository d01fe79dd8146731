#!/usr/bin/env python3
"""Write one HTML file about a set of runs: python scripts/report.py --root ./save --out report.html

The file is self-contained: sortable tables, zoomable curves, and for every number its commands and machines.
"""

from __future__ import annotations

import datetime
import html
import json
import math
import re
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.files import atomic_write_text, make_folder, read_json
from core.protocols import UserError
from helper.machine.program import ScriptParser, run_script
from helper.options.quick import normalised
from helper.runs.folder import paths_in
from helper.tables.compare import last_by_seed, settings_of, shown, t_quantile
from helper.tables.looks import DASHES, looks, method_of
from helper.tables.published import read_table
from helper.tables.runs import Run, add_runs, chosen_runs, evaluated, grouped
from helper.tables.table import table
from helper.tables.writers import chosen_columns

TEXT = ("method", "network", "teacher", "source", "protocol")
NARROW = ("method", "last epoch", "gain", "MACs")  # the columns that a phone shows
FIRST = ("method", "network", "teacher", "last epoch", "gain", "MACs", "parameters", "runs")  # shown on a wide screen
FILTERS = ("network", "teacher", "protocol")  # columns with a list to choose from


def words_of(run: Run) -> list[str]:
    """What stood behind the script on the command line that trained it, from args.json."""
    return list(map(str, read_json(run.folder / "args.json", {"command": list}, "train the run again")["command"]))


def command_of(run: Run) -> str:
    script = "train_teacher.py" if run.is_teacher else "train_student.py"
    return shlex.join(["python", script, *words_of(run)])


def without_folders_of(runs: Sequence[Run], text: str) -> str:
    """A page in which the absolute paths of the commands have their last part alone, names of runs included."""
    for path in paths_in(word for run in runs for word in words_of(run)):
        name = Path(path).name
        text = text.replace(html.escape(path), f".../{html.escape(name)}")
        text = text.replace(html.escape(path.replace("/", "-")), f"...-{html.escape(name)}")
    return text


def environment_of(run: Run) -> dict[str, str]:
    env = run.env
    commit = f"{env.get('commit') or 'unknown'}{' with uncommitted changes' if env.get('dirty') else ''}"
    versions = ", ".join(f"{k} {v}" for k, v in env.get("versions", {}).items() if v)
    hardware = ", ".join(env.get("gpus") or []) or f"{env.get('cpu')}, {env.get('cpu_threads')} threads"
    found = {"folder": run.folder.name, "commit": commit, "versions": versions, "hardware": hardware}
    found |= {"platform": env.get("platform", ""), "Python": env.get("python", ""), "seed": str(run.identity["seed"])}
    lanes = [name for name in run.parameters.get("lanes", []) if name != run.folder.name]
    if lanes:
        found["trained together with"] = "; ".join(lanes)
    return {k: v for k, v in found.items() if v}


def sort_key(column: str, text: str, group: Sequence[Run]) -> str:
    """What a column is sorted by: text as it is, numbers by value, times in seconds."""
    if column in TEXT:
        return text
    if column == "time":
        return f"{statistics.mean(r.parameters['Total time'] * 3600 for r in group):.3f}"
    found = re.search(r"-?\+?\d+(\.\d+)?", text)
    return found[0].lstrip("+") if found else ""


def table_html(header: Sequence[str], rows: Sequence[Sequence[str]], groups: Sequence[Sequence[Run]]) -> str:
    def kind(column: str) -> str:
        names = ["text"] * (column in TEXT) + ["wide"] * (column not in NARROW)
        return f' class="{" ".join(names)}"' if names else ""

    head = "".join(
        f'<th scope="col" aria-sort="none"{kind(c)}><button type="button">{html.escape(c)}</button></th>'
        for c in header
    )
    several = len({row[1] for row in rows}) > 1  # networks, whose column a phone does not show
    body = []
    for i, (row, group) in enumerate(zip(rows, groups, strict=True)):
        cells = "".join(
            f'<td data-v="{html.escape(sort_key(c, text, group))}"{kind(c)}>'
            + (f'<a href="#cell-{i}">{html.escape(text)}</a>' if text else "")
            + (f'<span class="phone notes"> {html.escape(row[1])}</span>' if c == "method" and several else "")
            + "</td>"
            for c, text in zip(header, row, strict=True)
        )
        body.append(f'<tr data-row="{i}">{cells}</tr>')
    return f'<table id="results"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'


def details_html(labels: Sequence[str], groups: Sequence[Sequence[Run]]) -> str:
    out = []
    for i, (label, group) in enumerate(zip(labels, groups, strict=True)):
        runs = []
        for run in group:
            facts = "".join(
                f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in environment_of(run).items()
            )
            final, top = run.rows[-1]["test_acc"], run.parameters["best"]
            runs.append(
                f"<p>last epoch {final:.2f}, best {top['test_acc']:.2f} (epoch {top['epoch']})</p>"
                f"<pre>{html.escape(command_of(run))}</pre><dl>{facts}</dl>"
            )
        runs_word = "run" if len(group) == 1 else "runs"
        out.append(
            f'<details id="cell-{i}"><summary>{html.escape(label)} ({len(group)} {runs_word})</summary>'
            f"{'<hr>'.join(runs)}</details>"
        )
    return "\n".join(out)


def filters_html(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A list for each column of FILTERS that tells rows apart."""
    out = []
    for column in (c for c in FILTERS if c in header):
        values = sorted({row[header.index(column)] for row in rows})
        if len(values) > 1:
            options = "".join(f'<option value="{html.escape(v)}">{html.escape(v or "none")}</option>' for v in values)
            out.append(
                f'<label>{column} <select data-filter="{column}"><option value="*">all</option>{options}</select>'
            )
            out[-1] += "</label>"
    return "".join(out)


def series_of(label: str, group: Sequence[Run], look: tuple[str, int]) -> dict[str, Any]:
    """One curve: mean and range over the runs, of the epochs that all of them have; and what comparing it takes."""
    rows = evaluated(group)

    def over_runs(key: str, fold: Callable[[list[float]], float]) -> list[float]:
        return [round(fold([row[key] for row in epoch]), 5) for epoch in zip(*rows, strict=True)]

    return {
        "label": label,
        "epochs": [row["epoch"] for row in rows[0]],
        "loss": over_runs("test_loss", statistics.mean),
        "accuracy": over_runs("test_acc", statistics.mean),
        "band": {
            k: [over_runs(f"test_{s}", f) for f in (min, max)] for k, s in (("loss", "loss"), ("accuracy", "acc"))
        },
        "colour": look[0],
        "dash": DASHES[look[1]],
        "teacher": group[0].parameters.get("teacher_acc"),
        "seeds": {str(seed): value for seed, value in last_by_seed(group).items()},
        "settings": {k: shown(v) for k, v in settings_of(group).items()},
    }


def page(runs: Sequence[Run], title: str, published: Sequence[str] = ()) -> str:
    groups = grouped(runs)
    header, rows, notes = table(runs, [cell for name in published for cell in read_table(name).cells])
    labels = [f"{row[0]}, {row[1]}" for row in rows]
    header, rows = chosen_columns(header, rows, ",".join([*FIRST, *(name for name in header if name not in FIRST)]))
    curves = zip(labels, groups, looks([method_of(group[0]) for group in groups]), strict=True)
    series = [series_of(label, group, look) for label, group, look in curves]
    most = max(2, *(len(group) for group in groups))
    if bad := [s["label"] for s in series if not all(map(math.isfinite, (*s["loss"], *s["accuracy"])))]:
        raise UserError(
            f"a test loss or accuracy of {bad[0]} is NaN or infinite: leave these runs out (--only, --root)"
        )
    about = (
        f"{len(runs)} finished runs in {len(groups)} rows; made by scripts/report.py on "
        f"{datetime.date.today().isoformat()}. Every number comes from metrics.jsonl of a run."
    )
    parts = {
        "TITLE": html.escape(title),
        "ABOUT": html.escape(about),
        "TABLE": table_html(header, rows, groups),
        "NOTES": "".join(f"<p>{html.escape(note)}</p>" for note in notes),
        "DETAILS": details_html(labels, groups),
        "FILTERS": filters_html(header, rows),
        "DATA": json.dumps(series).replace("<", "\\u003c"),
        "QUANTILES": json.dumps([round(t_quantile(n), 4) for n in range(1, most)]),
    }
    template = Path(__file__).with_name("report.html").read_text()
    return re.sub("@([A-Z]+)@", lambda found: parts[found[1]], template)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add_runs(parser)
    add("--published", nargs="+", default=[], help="published tables to compare with, such as simkd", metavar="TABLE")
    add("--title", default="Knowledge distillation: results", help="heading of the page", metavar="TEXT")
    add("--hide_folders", action="store_true", help="show only the last part of absolute paths in commands")
    add("--out", type=Path, default=Path("report.html"), help="file to write", metavar="FILE")
    args = parser.parse_args(normalised(argv))
    runs = chosen_runs(args.root, args.dataset, args.only)
    text = page(runs, args.title, args.published)
    if args.hide_folders:
        text = without_folders_of(runs, text)
    make_folder(args.out.parent)
    atomic_write_text(args.out, text)
    print(f"wrote {args.out}: {len(runs)} runs, {len(text) / 1024:.0f} KiB, no other file needed")


if __name__ == "__main__":
    run_script(main)
