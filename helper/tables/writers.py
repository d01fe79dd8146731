"""Tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from core.protocols import UserError
from helper.tables.published import Cell

_LATEX = {"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}"}
_LATEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
_LATEX |= {"±": r"$\pm$", "→": r"$\rightarrow$"}
_NUMBERS = re.compile(r"[-+][\d.][\d.,\s±()\[\]%/]*")  # characters of numbers in a table, with a sign


def one_line(text: str) -> str:
    """Without line breaks and other control characters."""
    return "".join(c if c.isprintable() else " " for c in text)


def markdown(text: str) -> str:
    """Plain text as a cell of a Markdown table."""
    return one_line(text).replace("\\|", "|").replace("|", "\\|")


def csv_cell(text: str) -> str:
    """A cell that no spreadsheet reads as a formula: with an apostrophe in front, if it begins like one."""
    begins = text.lstrip().startswith(("=", "+", "-", "@")) and not _NUMBERS.fullmatch(text)
    return f"'{text}" if begins else text


def latex(text: str) -> str:
    """Plain text with every special character escaped."""
    escaped = "".join(_LATEX.get(c, c) for c in one_line(text))
    return re.sub(r"^-(?=\d)", "$-$", escaped)


def as_latex(header: list[str], rows: list[list[str]], notes: list[str]) -> str:
    """A tabular of the package booktabs; the first two columns are text, the others numbers. Notes become comments."""
    form = "ll" + "r" * (len(header) - 2)
    body = [" & ".join(map(latex, row)) + r" \\" for row in rows]
    lines = [
        *(f"% {one_line(note)}" for note in notes),
        rf"\begin{{tabular}}{{{form[: len(header)]}}}",
        r"\toprule",
        " & ".join(map(latex, header)) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def add_published(
    header: list[str], rows: list[list[str]], notes: list[str], groups: Sequence[Sequence[Any]], cells: Sequence[Cell]
) -> None:
    """Add "published" and "source" after the gain, in place, if a row is the same experiment as a published cell.

    groups: the runs of each row. A run with another schedule or other weights is another experiment: its row gets no
    number. A note names the sources, and the accuracy of the teachers there, from which ours may differ.
    """
    at = header.index("gain") + 1
    header[at:at] = ["published", "source"]
    sources = list(dict.fromkeys(c.source for c in cells))
    taught: dict[int, list[str]] = {}  # number of a source -> its teachers
    for row, group in zip(rows, groups, strict=True):
        found = published_of(group[0], cells)
        numbers = [sources.index(c.source) + 1 for c in found]
        row[at:at] = [", ".join(f"{c.published:.2f}" for c in found), ", ".join(f"({k})" for k in numbers)]
        for k, c in zip(numbers, found, strict=True):
            known = not c.alone and not math.isnan(c.teacher_accuracy)
            taught.setdefault(k, []).extend([f"{c.teacher} {c.teacher_accuracy:.2f}"] if known else [])
    for k, teachers in sorted(taught.items()):
        named = f" Accuracy of its teachers: {', '.join(dict.fromkeys(teachers))}." if teachers else ""
        notes.append(f"Published ({k}): {sources[k - 1]}.{named}")


def published_of(run: Any, cells: Sequence[Cell]) -> list[Cell]:
    """The published cells of the same experiment as a run; two publications may have different numbers."""
    if run.is_teacher:
        return []
    fitting = [c for c in cells if c.fits(run.identity, run.parameters.get("arch_t"))]
    return list({(c.published, c.source): c for c in fitting}.values())


def pivot(
    groups: Sequence[Sequence[Any]],
    labels: Sequence[str],
    describe_protocol: Callable[[Any], str],
    entry: Callable[[Sequence[Any]], str],
    cells: Sequence[Cell] = (),
) -> tuple[list[str], list[list[str]], list[str]]:
    """(header, rows, notes): one line per method, one column per pair of teacher and student.

    entry: text of a cell, from its runs. UserError if there is no student, if the numbers of one column come from
    different protocols, or if two experiments fall into one cell.
    """
    students = [i for i, group in enumerate(groups) if not group[0].is_teacher]
    if not students:
        raise UserError(
            "--pivot shows methods by pair of teacher and student, but all these runs are teachers: train a "
            "student, or leave --pivot out"
        )
    distilled = [i for i in students if groups[i][0].parameters.get("arch_t")]
    pairs: dict[tuple[str, str], list[int]] = {}
    for i in distilled:
        run = groups[i][0]
        pairs.setdefault((run.parameters["arch_t"], run.identity["model_s"]), []).append(i)
    for i in (i for i in students if i not in distilled):  # a student alone: in every column of this student
        student = groups[i][0].identity["model_s"]
        for pair in [p for p in pairs if p[1] == student] or [("", student)]:
            pairs.setdefault(pair, []).insert(0, i)
    header: list[str] = ["method"]
    table: dict[str, Any] = {}
    sources = list(dict.fromkeys(c.source for c in cells))
    notes = []
    for (teacher, student), members in pairs.items():
        protocols = {describe_protocol(groups[i][0]) for i in members}
        if len(protocols) > 1:
            raise UserError(
                f"the column {teacher} → {student} would mix protocols: {' | '.join(sorted(protocols))}; "
                "choose runs with --root, --dataset or --only, or leave --pivot out"
            )
        header.append(f"{teacher} → {student}" if teacher else student)
        notes.append(f"{header[-1]}: {protocols.pop()}.")
        for i in members:
            row = table.setdefault(labels[i], {})
            if header[-1] in row:
                raise UserError(
                    f"two experiments have the label {labels[i]} in the column {header[-1]}: choose runs with --root "
                    "or --only"
                )
            found = published_of(groups[i][0], cells)
            published_text = ", ".join(
                f"{c.published:.2f}" + f" ({sources.index(c.source) + 1})" * (len(sources) > 1) for c in found
            )
            row[header[-1]] = entry(groups[i]) + (f" / {published_text}" if published_text else "")
    rows = [[label, *(row.get(column, "") for column in header[1:])] for label, row in table.items()]
    notes.append("Last epoch, mean ± standard deviation (best epoch, chosen on the test data) [runs]")
    notes[-1] += " / published." if any(" / " in c for r in rows for c in r) else "."
    notes += [f"Published{f' ({k})' * (len(sources) > 1)}: {source}." for k, source in enumerate(sources, 1)]
    return header, rows, notes


def chosen_columns(header: list[str], rows: list[list[str]], wanted: str) -> tuple[list[str], list[list[str]]]:
    """wanted: columns in their new order, separated by commas; NAME=HEADING gives one another heading."""
    pairs = [(name.strip(), new.strip()) for name, _, new in (word.partition("=") for word in wanted.split(","))]
    for name, _ in pairs:
        if name not in header:
            raise UserError(f"--columns {name} is not a column of this table; it has {', '.join(header)}")
    places = [header.index(name) for name, _ in pairs]
    return [new or name for name, new in pairs], [[row[i] for i in places] for row in rows]


def as_markdown(header: list[str], rows: list[list[str]], notes: list[str]) -> str:
    """A Markdown table, and below it a paragraph for each note."""
    header, rows = list(map(markdown, header)), [list(map(markdown, row)) for row in rows]
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([line(header), rule, *map(line, rows), "", *[f"{one_line(n)}\n" for n in notes]])


ENTRY = re.compile(
    r"\(?(?P<mean>[+-]?\d+(?:\.\d+)?)\)?(?: M)?(?: ± (?P<std>\d+\.\d+))?(?: \((?P<best>\d+\.\d+)\))?"
    r"(?: \[(?P<n>\d+)\])?(?: / (?P<published>.+))?"
)
CLOCK = re.compile(r"\d+(:\d\d)+")


def numbers_of(name: str, cells: Sequence[str]) -> list[list[str]]:
    """A column as columns of plain numbers, headings first; a text column unchanged."""
    if any(cells) and all(CLOCK.fullmatch(cell) for cell in cells):
        seconds = [sum(int(part) * 60**i for i, part in enumerate(reversed(cell.split(":")))) for cell in cells]
        return [[f"{name} (s)", *map(str, seconds)]]
    found = [ENTRY.fullmatch(cell) for cell in cells]
    if not any(cells) or any(cell and not match for cell, match in zip(cells, found, strict=True)):
        return [[name, *cells]]
    many = any(match and (match["n"] or match["std"]) for match in found) or name == "last epoch"
    parts = [part for part in ENTRY.groupindex if any(match and match[part] for match in found)]
    if many and "std" not in parts:
        parts.insert(1, "std")  # a single run has none: the column is empty
    heading = "n" if name == "runs" else name.strip("()") + " (M)" * any(cell.endswith(" M") for cell in cells)
    return [
        [f"{heading} {part}" if many else heading, *((match and match[part]) or "" for match in found)]
        for part in parts
    ]


def as_csv(header: list[str], rows: list[list[str]], notes: list[str]) -> str:
    """Plain numbers: separate columns for settings, mean, standard deviation and number of runs, and no units."""
    header, rows = own_columns(header, rows)
    columns = [c for i, name in enumerate(header) for c in numbers_of(name, [row[i] for row in rows])]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([list(map(csv_cell, row)) for row in zip(*columns, strict=True)])
    return text.getvalue()


KEEP_LAST = ("method", "last epoch", "gain", "network", "runs", "MACs", "parameters", "(best)", "teacher")


def own_columns(header: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Move settings in a method's label ("kd, kd_T 8.0") to separate columns."""
    if header[0] != "method":
        return header, rows
    split = [row[0].split(", ") for row in rows]
    found = [dict(part.split(" ", 1) for part in parts[1:] if " " in part) for parts in split]
    names = list(dict.fromkeys(name for settings in found for name in settings))
    left = [", ".join([parts[0], *(p for p in parts[1:] if " " not in p)]) for parts in split]
    return [header[0], *names, *header[1:]], [
        [label, *(settings.get(name, "") for name in names), *row[1:]]
        for label, settings, row in zip(left, found, rows, strict=True)
    ]


def as_terminal(header: list[str], rows: list[list[str]], notes: list[str], width: int) -> str:
    """Fit a table to a terminal of `width` characters: settings get columns; columns that do not fit, and settings that
    all rows share, are named below the table."""
    header, rows = own_columns(header, rows)
    sizes = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rank = {name: i for i, name in enumerate(KEEP_LAST)}
    settings = {name for name in header if name in rank or name.isidentifier() and name not in ("loss", "time")}
    order = sorted(range(len(header)), key=lambda i: (rank.get(header[i], 3 if header[i] in settings else 20), i))
    kept: list[int] = []
    for i in order:
        if any(row[i] for row in rows) and sum(sizes[k] + 3 for k in [*kept, i]) + 1 <= width:
            kept.append(i)
    kept = sorted(kept) or [0]
    gone = [name for i, name in enumerate(header) if i not in kept and any(row[i] for row in rows)]
    text = as_markdown([header[i] for i in kept], [[row[i] for i in kept] for row in rows], [])
    if gone:
        notes = [f"Columns that do not fit: {', '.join(gone)} (--out and --format show them).", *notes]
    return "\n".join([text, *(textwrap.fill(note, width) for note in notes)]) + "\n"
