"""Comparison of runs: different settings, and the difference of the last epochs over common seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from helper.tables.runs import REPETITION, Run, last, mean_std, network

ENOUGH = 3  # smallest number of seeds for a useful interval


def t_quantile(freedom: int) -> float:
    """Quantile of Student's t at 97.5 %."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def last_by_seed(group: Sequence[Run]) -> dict[int, float]:
    """Seed -> top-1 of the last epoch, in percent."""
    return {run.identity["seed"]: run.rows[-1]["test_acc"] for run in group}


def paired(group: Sequence[Run], base: Sequence[Run]) -> str:
    """The difference of `group` from `base` in points of the last epoch, over the seeds that both have."""
    ours, theirs = last_by_seed(group), last_by_seed(base)
    gaps = [ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()]
    if not gaps:
        return "no seed in common"
    mean, seeds = statistics.mean(gaps), f"{len(gaps)} common seed{'s' * (len(gaps) > 1)}"
    if len(gaps) == 1:
        return f"{mean:+.2f} ({seeds}: too few for an interval)"
    half = t_quantile(len(gaps) - 1) * statistics.stdev(gaps) / len(gaps) ** 0.5
    few = f", few: use {ENOUGH} or more" if len(gaps) < ENOUGH else ""
    inside = "0 is inside" if abs(mean) <= half else "0 is outside"
    return f"{mean:+.2f} (95 % interval {mean - half:+.2f} to {mean + half:+.2f}, {inside}; {seeds}{few})"


def settings_of(group: Sequence[Run]) -> dict[str, Any]:
    """The settings that repetitions of a cell share, with the teacher's name."""
    first = group[0]
    found = {k: v for k, v in first.identity.items() if k not in REPETITION}
    if first.parameters.get("arch_t"):
        found["arch_t"] = first.parameters["arch_t"]
    return found


def differing(groups: Sequence[Sequence[Run]]) -> list[tuple[str, list[str]]]:
    """(setting, its value in each cell) for settings that differ; - if a cell has no such setting."""
    all_settings = [settings_of(group) for group in groups]
    names = dict.fromkeys(name for settings in all_settings for name in settings)
    rows = [(name, [shown(settings.get(name)) for settings in all_settings]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def shown(value: Any) -> str:
    """A setting as text; - for none."""
    if value is None:
        return "-"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def comparison(groups: Sequence[Sequence[Run]], labels: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): every cell against the first."""
    header = ["", "network", "last epoch", "runs", f"over {labels[0]}, paired by seed"]
    rows = []
    for group, label in zip(groups, labels, strict=True):
        over = "" if group is groups[0] else paired(group, groups[0])
        rows.append([label, network(group[0]), mean_std(last(group)), str(len(group)), over])
    return header, rows
