#!/usr/bin/env python3
"""Tables from run folders: python scripts/make_table.py --root ./save [--dataset digits] [--out FILE]

One row per (student, method, teacher, settings); repetitions that differ only in trial and seed are averaged. Numbers
come from metrics.jsonl and parameters.json of finished runs; nothing is typed.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.files import atomic_write_text, make_folder
from core.protocols import UserError
from helper.machine.program import ScriptParser, run_script
from helper.tables.published import Cell, read_table
from helper.tables.runs import Run, add_runs, chosen_runs
from helper.tables.table import against_pairs, table
from helper.tables.words import in_words
from helper.tables.writers import Content, as_csv, as_latex, as_markdown, as_terminal, chosen_columns

FORMATS = {"markdown": as_markdown, "csv": as_csv, "latex": as_latex}
BY_SUFFIX = {".csv": "csv", ".tex": "latex"}


def content(args: argparse.Namespace, runs: list[Run], published: list[Cell], pairs: bool) -> Content:
    header, rows, notes = (against_pairs if pairs else table)(runs, published)
    if args.columns:
        header, rows, notes = *chosen_columns(header, rows, args.columns), []
    if args.in_words:
        notes.insert(0, in_words(runs))
    return header, rows, notes


def on_terminal(args: argparse.Namespace, runs: list[Run], published: list[Cell]) -> str:
    """Methods against pairs first, where the runs allow it, then a row a cell with what there is room for."""
    width, parts = shutil.get_terminal_size().columns, []
    if not args.columns:
        with contextlib.suppress(UserError):  # runs of one column under several protocols, or teachers alone
            header, rows, notes = against_pairs(runs, published)
            parts.append(as_terminal(header, rows, [] if not args.pivot else notes, width))
    if not args.pivot or not parts:
        parts.append(as_terminal(*content(args, runs, published, pairs=False), width))
    return "\n".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add_runs(parser)
    text = "format (default: csv and latex for .csv and .tex files, else markdown; on a terminal, what fits its width)"
    add("--format", choices=FORMATS, help=text)
    add("--published", nargs="+", default=[], help="published tables to compare with, such as simkd", metavar="TABLE")
    add("--pivot", action="store_true", help="one row per method, one column per pair of networks")
    add("--columns", help="columns to show, NAME or NAME=HEADING, without notes: method,gain,runs", metavar="COLUMNS")
    add("--in_words", action="store_true", help="add a sentence on gains and losses")
    add("--out", type=Path, help="write to this file instead of standard output", metavar="FILE")
    add("--title", help="a heading above a Markdown table", metavar="TEXT")
    args = parser.parse_args(argv)
    runs = chosen_runs(args.root, args.dataset, args.only)
    published = [cell for name in args.published for cell in read_table(name).cells]
    form = args.format or BY_SUFFIX.get(args.out.suffix if args.out else "", "markdown")
    if sys.stdout.isatty() and not args.out and args.format is None:
        text = on_terminal(args, runs, published)
    else:
        text = FORMATS[form](*content(args, runs, published, args.pivot))
    if args.title and form == "markdown":
        text = f"# {args.title}\n\n{text}"
    if args.out:
        make_folder(args.out.parent)
        atomic_write_text(args.out, text)
        print(f"wrote {args.out}: {len(runs)} run{'s' * (len(runs) > 1)}")
    else:
        print(text)


if __name__ == "__main__":
    run_script(main)
