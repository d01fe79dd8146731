"""Tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from core.protocols import UserError
from helper.tables.published import Cell

_LATEX = {"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}"}


_LATEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}


_LATEX |= {"±": r"$\pm$", "→": r"$\rightarrow$", "-": "-"}


_NUMBERS = re.compile(r"[-+][\d.][\d.,\s±()\[\]%/]*")  # what a table writes of numbers, signs in front


def one_line(text: str) -> str:
    """Without line breaks and other control characters."""
    return "".join(c if c.isprintable() else " " for c in text)


def markdown(text: str) -> str:
    """Plain text as a cell of a table."""
    return one_line(text).replace("\\|", "|").replace("|", "\\|")


def csv_cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula: behind an apostrophe where it begins like one."""
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
    """Put "published" and "source" behind the gain, in place, where a row is the very experiment of a published cell.

    groups: the runs behind each row. A run of another schedule or other weights is another experiment: its row gets
    no number.
    """
    at = header.index("gain") + 1
    header[at:at] = ["published", "source"]
    sources = list(dict.fromkeys(c.source for c in cells))
    used = set()
    for row, group in zip(rows, groups, strict=True):
        found = published_of(group[0], cells)
        numbers = [sources.index(source) + 1 for _, source in found]
        used |= set(numbers)
        row[at:at] = [", ".join(f"{value:.2f}" for value, _ in found), ", ".join(f"({k})" for k in numbers)]
    notes += [f"Published ({k}): {sources[k - 1]}." for k in sorted(used)]


def published_of(run: Any, cells: Sequence[Cell]) -> list[tuple[float, str]]:
    """(number, source) of every publication of a run's very experiment; two may print two numbers of one."""
    if run.is_teacher:
        return []
    fitting = [c for c in cells if c.fits(run.identity, run.parameters.get("arch_t"))]
    return list(dict.fromkeys((c.published, c.source) for c in fitting))


def pivot(
    groups: Sequence[Sequence[Any]],
    labels: Sequence[str],
    describe_protocol: Callable[[Any], str],
    entry: Callable[[Sequence[Any]], str],
    cells: Sequence[Cell] = (),
) -> tuple[list[str], list[list[str]], list[str]]:
    """(header, rows, notes): one line per method, one column per pair of teacher and student.

    entry: text of a cell, from its runs. Raises UserError where there is no student, where the numbers of one column
    come from different protocols, or where two experiments fall into one cell.
    """
    students = [i for i, group in enumerate(groups) if not group[0].is_teacher]
    if not students:
        raise UserError(
            "--pivot puts methods against pairs of teacher and student, and these runs are all of teachers: train a "
            "student, or leave --pivot out"
        )
    distilled = [i for i in students if groups[i][0].parameters.get("arch_t")]
    pairs: dict[tuple[str, str], list[int]] = {}
    for i in distilled:
        run = groups[i][0]
        pairs.setdefault((run.parameters["arch_t"], run.identity["model_s"]), []).append(i)
    for i in (i for i in students if i not in distilled):  # alone: in every column of its student
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
                raise UserError(f"two experiments are called {labels[i]} in the column {header[-1]}")
            found = published_of(groups[i][0], cells)
            published_text = ", ".join(f"{v:.2f}" + f" ({sources.index(s) + 1})" * (len(sources) > 1) for v, s in found)
            row[header[-1]] = entry(groups[i]) + (f" / {published_text}" if published_text else "")
    rows = [[label, *(row.get(column, "") for column in header[1:])] for label, row in table.items()]
    notes.append("Last epoch, mean ± standard deviation (best epoch, selected on what it is reported on) [runs]")
    notes[-1] += " / published." if any(" / " in c for r in rows for c in r) else "."
    notes += [f"Published{f' ({k})' * (len(sources) > 1)}: {source}." for k, source in enumerate(sources, 1)]
    return header, rows, notes


def chosen_columns(header: list[str], rows: list[list[str]], wanted: str) -> tuple[list[str], list[list[str]]]:
    """wanted: columns in their new order, separated by commas; NAME=HEADING gives one another heading."""
    pairs = [(name.strip(), new.strip()) for name, _, new in (word.partition("=") for word in wanted.split(","))]
    for name, _ in pairs:
        if name not in header:
            raise UserError(f"--columns {name} is no column of this table; it has {', '.join(header)}")
    places = [header.index(name) for name, _ in pairs]
    return [new or name for name, new in pairs], [[row[i] for i in places] for row in rows]


def as_markdown(header: list[str], rows: list[list[str]], notes: list[str]) -> str:
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
    """A column as columns of plain numbers, headings first; a column of text as it is."""
    if any(cells) and all(CLOCK.fullmatch(cell) for cell in cells):
        seconds = [sum(int(part) * 60**i for i, part in enumerate(reversed(cell.split(":")))) for cell in cells]
        return [[f"{name} (s)", *map(str, seconds)]]
    found = [ENTRY.fullmatch(cell) for cell in cells]
    if not any(cells) or any(cell and not match for cell, match in zip(cells, found, strict=True)):
        return [[name, *cells]]
    many = any(match and (match["n"] or match["std"]) for match in found) or name == "last epoch"
    parts = [part for part in ENTRY.groupindex if any(match and match[part] for match in found)]
    if many and "std" not in parts:
        parts.insert(1, "std")  # of one run there is none: the column is empty
    heading = "n" if name == "runs" else name.strip("()") + " (M)" * any(cell.endswith(" M") for cell in cells)
    return [
        [f"{heading} {part}" if many else heading, *((match and match[part]) or "" for match in found)]
        for part in parts
    ]


def as_csv(header: list[str], rows: list[list[str]], notes: list[str]) -> str:
    """Plain numbers: settings, mean, standard deviation and number of runs have columns of their own, and no cell has a
    unit."""
    header, rows = own_columns(header, rows)
    columns = [c for i, name in enumerate(header) for c in numbers_of(name, [row[i] for row in rows])]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([list(map(csv_cell, row)) for row in zip(*columns, strict=True)])
    return text.getvalue()


KEEP_LAST = ("method", "last epoch", "gain", "network", "runs", "MACs", "parameters", "(best)", "teacher")


def own_columns(header: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Settings that a method's name ends in ("kd, kd_T 8.0") as columns of their own."""
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
    """Fits a terminal of `width` characters: settings have columns, those that all rows share and those for which there
    is no room are left out and named."""
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
        notes = [f"No room for: {', '.join(gone)} (--out or --format has them).", *notes]
    return "\n".join([text, *(textwrap.fill(note, width) for note in notes)]) + "\n"
