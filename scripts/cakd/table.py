#!/usr/bin/env python3
"""The table of a CAKD study, with a note on its teacher: python scripts/cakd/table.py --root save

The note says if the teacher's accuracy is below that of the student alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import atomic_write_text
from core.protocols import UserError
from helper.machine.program import run_script
from helper.tables.runs import Run, find_runs
from helper.tables.table import table
from helper.tables.writers import as_markdown


def worth_of_teachers(runs: Sequence[Run]) -> list[str]:
    """A sentence per teacher: its measured accuracy next to the mean of the student alone."""
    alone: dict[str, list[float]] = {}
    teachers: dict[tuple[str, str], float] = {}
    for run in runs:
        if run.is_teacher:
            continue
        student, p = run.identity["model_s"], run.parameters
        if run.identity["distill"] == "vanilla":
            alone.setdefault(student, []).append(run.rows[-1]["test_acc"])
        elif p.get("arch_t") and p.get("teacher_acc") is not None:
            teachers[student, p["arch_t"]] = p["teacher_acc"]
    notes = []
    for (student, teacher), accuracy in teachers.items():
        if student not in alone:
            continue
        base = statistics.mean(alone[student])
        side = "TEACHER BELOW THE STUDENT ALONE" if accuracy < base else "above the student alone"
        notes.append(f"Teacher {teacher}: {accuracy:.2f}, {student} alone: {base:.2f}: {side}.")
    return notes


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, nargs="+", required=True, help="roots of runs", metavar="FOLDER")
    parser.add_argument("--title", required=True, help="heading above the table", metavar="TEXT")
    parser.add_argument("--out", type=Path, help="write to this file instead of standard output", metavar="FILE")
    args = parser.parse_args(argv)
    runs = [run for root in args.root for run in find_runs(root, None)]
    if not runs:
        raise UserError(f"no finished run below {', '.join(map(str, args.root))}: train something first")
    header, rows, notes = table(runs)
    text = f"# {args.title}\n\n{as_markdown(header, rows, [*worth_of_teachers(runs), *notes])}"
    if args.out:
        atomic_write_text(args.out, text)
    else:
        print(text)


if __name__ == "__main__":
    run_script(main)
