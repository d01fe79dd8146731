"""Tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
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


def as_csv(header: list[str], rows: list[list[str]], notes: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([list(map(csv_cell, row)) for row in [header, *rows]])
    return text.getvalue()
