"""Tables as Markdown, CSV, LaTeX and on a terminal."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from core.files import atomic_write_text, make_folder
from core.protocols import UserError

Content = tuple[list[str], list[list[str]], list[str]]  # header, rows, notes

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


def chosen_columns(header: list[str], rows: list[list[str]], wanted: str) -> tuple[list[str], list[list[str]]]:
    """wanted: columns in their new order, separated by commas; NAME=HEADING gives one another heading."""
    pairs = [(name.strip(), new.strip()) for name, _, new in (word.partition("=") for word in wanted.split(","))]
    for name, _ in pairs:
        if name not in header:
            raise UserError(f"--columns {name} is not a column of this table; it has {', '.join(header)}")
    places = [header.index(name) for name, _ in pairs]
    return [new or name for name, new in pairs], [[row[i] for i in places] for row in rows]


def publish(text: str, path: str | Path | None) -> None:
    """Print a page, and write it to a file, if one is named."""
    text = text.rstrip()
    print(text)
    if path is not None:
        make_folder(Path(path).parent)
        atomic_write_text(path, f"{text}\n")


def as_markdown(header: Sequence[str], rows: Iterable[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """A Markdown table, and below it a paragraph for each note."""
    first, *others = [list(map(markdown, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(first, *others, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([line(first), rule, *map(line, others), "", *[f"{one_line(n)}\n" for n in notes]])


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
    text = as_markdown([header[i] for i in kept], [[row[i] for i in kept] for row in rows])
    if gone:
        notes = [f"Columns that do not fit: {', '.join(gone)} (--out and --format show them).", *notes]
    return "\n".join([text, *(textwrap.fill(note, width) for note in notes)]) + "\n"
