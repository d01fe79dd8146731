"""Results of runs as sentences, computed from the same numbers as the table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from helper.tables.compare import last_by_seed
from helper.tables.runs import Run, grouped, last, network
from helper.tables.table import protocol, tell_apart


def in_words(runs: Iterable[Run]) -> str:
    """Each method compared with the student alone under the same protocol; then the numbers of labels."""
    groups = grouped(runs)
    named = [(label, g) for label, g in zip(tell_apart(groups), groups, strict=True) if not g[0].is_teacher]
    sentences = []
    for _, alone in (item for item in named if item[1][0].identity["distill"] == "vanilla"):
        others = [
            (label, g)
            for label, g in named
            if g is not alone and network(g[0]) == network(alone[0]) and protocol(g[0]) == protocol(alone[0])
        ]
        found = [f"{label} is {difference(g, alone)}" for label, g in others]
        sentences += [f"{network(alone[0])} alone reaches {statistics.mean(last(alone)):.2f} %"]
        sentences[-1] += f"; {', '.join(found)}." if found else "."
        teachers = {r.parameters["arch_t"]: r.parameters.get("teacher_acc") for _, g in others for r in g}
        worse = [
            f"{name} ({acc:.2f} %)" for name, acc in teachers.items() if acc and acc < statistics.mean(last(alone))
        ]
        sentences += [f"A teacher is worse than that: {', '.join(worse)}."] * bool(worse)
    if not sentences:
        return "No student was trained alone, so there is no gain to report."
    return " ".join([*sentences, *labels_in_words(groups)])


def difference(group: Sequence[Run], alone: Sequence[Run]) -> str:
    """3.20 points above it (higher with 3 of 3 seeds)"""
    points = round(statistics.mean(last(group)) - statistics.mean(last(alone)), 2)
    where = f"{abs(points):.2f} points {'above' if points > 0 else 'below'} it" if points else "equal to it"
    ours, base = last_by_seed(group), last_by_seed(alone)
    if not (seeds := ours.keys() & base.keys()):
        return where
    return f"{where} (higher with {sum(ours[s] > base[s] for s in seeds)} of {len(seeds)} seeds)"


def labels_in_words(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A sentence, if all students used the same share of the training images and all teachers another one."""

    def shares(teachers: bool) -> set[Any]:
        return {g[0].identity.get("few_ratio", 1) for g in groups if g[0].is_teacher == teachers}

    students, teachers = shares(False), shares(True)
    if len(students) != 1 or len(teachers) != 1 or students == teachers:
        return []
    (few,), (many,) = students, teachers
    return [f"The students trained on {few:.0%} of the labelled images, their teacher on {many:.0%}."]
