"""Colours and lines of curves: a method has the same colour in every figure and page."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

from distiller_zoo import method_dict
from helper.tables.runs import Run

# Okabe and Ito, 2008, without the pale yellow, then three more distinct colours
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#A6263F", "#7A4B2A", "#6A3D9A", "#8A9A00")
TEACHER = "#707070"
# lengths of dashes and gaps, as multiples of the line's width; (): a solid line
PATTERNS = ((), (4, 2), (6, 2, 1, 2), (1, 2), (6, 2, 1, 2, 1, 2), (1, 3), (9, 3), (4, 4), (12, 2))
LINES: list[Any] = [(0, pattern) if pattern else "-" for pattern in PATTERNS]  # line styles of matplotlib
DASHES = [" ".join(map(str, pattern)) for pattern in PATTERNS]  # the same in SVG
FIRST = ("vanilla", "kd", "simkd", "crd", "dkd", "fitnet", "at", "reviewkd", "sp", "hsakd")  # most often compared


def colour_of(method: str) -> str:
    """Colour of a registry name, such as kd, kd+crd or a plugin's; teachers are grey."""
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
    """The name that determines a run's colour: its method, or teacher."""
    return "teacher" if run.is_teacher else run.identity["distill"]


def looks(methods: Sequence[str]) -> list[tuple[str, int]]:
    """(colour, line style) of every curve of a figure: all differ, and also in grey as long as there are line
    styles."""
    found: list[tuple[str, int]] = []
    for method in methods:
        colour, used = colour_of(method), [line for _, line in found]
        mine = [line for other, line in found if other == colour]
        found.append((colour, min(range(len(LINES)), key=lambda k: (mine.count(k), used.count(k), k))))
    return found
