"""The looks of curves and points: a method has one colour in every picture and page, whatever else is shown."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

from distiller_zoo import method_dict
from helper.tables.runs import Run

# Okabe and Ito, 2008, without the yellow that fades on paper, then three that stay apart from them
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#A6263F", "#7A4B2A", "#6A3D9A", "#8A9A00")
TEACHER = "#707070"
LINES: tuple[Any, ...] = (  # of matplotlib
    "-",
    "--",
    "-.",
    ":",
    (0, (6, 2, 1, 2, 1, 2)),
    (0, (1, 3)),
    (0, (9, 3)),
    (0, (4, 4)),
    (0, (12, 2)),
)
DASHES = ("", "7 3", "9 3 2 3", "2 3", "6 2 1 2 1 2", "1 3", "9 3", "4 4", "12 2")  # the same in SVG
FIRST = ("vanilla", "kd", "simkd", "crd", "dkd", "fitnet", "at", "reviewkd", "sp", "hsakd")  # compared most often


def colour_of(method: str) -> str:
    """Of a registry name, as kd, kd+crd or a plugin's; teachers are grey."""
    if method == "teacher":
        return TEACHER
    rest = [name for name in method_dict if name not in FIRST]
    if method in FIRST:
        place = FIRST.index(method)
    elif method in rest:
        place = rest.index(method)
    else:
        place = zlib.crc32(method.encode())
    return COLOURS[place % len(COLOURS)]


def method_of(run: Run) -> str:
    """Whose colour a run has: its method's, or that of teachers."""
    return "teacher" if run.is_teacher else run.identity["distill"]


def looks(methods: Sequence[str]) -> list[tuple[str, int]]:
    """(colour, number of the line) of every curve of a picture: no two are alike, in grey neither while lines last."""
    found: list[tuple[str, int]] = []
    for method in methods:
        colour, used = colour_of(method), [line for _, line in found]
        mine = [line for other, line in found if other == colour]
        found.append((colour, min(range(len(LINES)), key=lambda k: (mine.count(k), used.count(k), k))))
    return found
