"""Published tables as data (scripts/cifar100/tables/*.toml): every cell has a command, a number and a source."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from core.files import ROOT, read_config
from core.protocols import UserError
from core.registry import Registry
from helper.options.parse import parse
from helper.options.settings import Settings

IMAGE = (3, 32, 32)
FOLDER = ROOT / "scripts" / "cifar100" / "tables"
TEACHER_PATH = "./save/teachers/models/{0}_vanilla/{0}_best.pth"


@dataclass(frozen=True)
class Cell:
    """One number of a table. published, teacher_accuracy: top-1 in percent, nan where the table has none. flags: of
    train_student.py."""

    table: str
    row: str
    teacher: str
    teacher_accuracy: float
    student: str
    flags: str
    published: float
    source: str
    dataset: str

    @property
    def alone(self) -> bool:
        """Whether the student trains without a teacher."""
        return "--distill vanilla" in self.flags

    def argv(self, trial: int | str = 0) -> list[str]:
        path = [] if self.alone else ["--path_t", TEACHER_PATH.format(self.teacher)]
        student = ["--model_s", self.student, "--dataset", self.dataset, "--trial", str(trial)]
        return [*path, *shlex.split(self.flags), *student]

    @cached_property
    def settings(self) -> Settings:
        return parse(self.argv(), teacher=False)

    def fits(self, identity: Mapping[str, Any], arch_t: str | None) -> bool:
        """Whether a run (identity of its args.json, teacher of its parameters.json) is this cell's experiment.

        Trial, seed, precision, checksums and --eval_freq may differ, and --protocol, which only chooses defaults.
        Every other setting counts, if it existed when the run was recorded.
        """
        if self.alone != (arch_t is None) or (arch_t is not None and arch_t.removesuffix("_cifar") != self.teacher):
            return False
        free = {"trial", "seed", "precision", "deterministic", "protocol", "eval_freq"}
        mine = json.loads(json.dumps(self.settings.identity))  # args.json has no tuples
        return all(identity.get(k, v) == v for k, v in mine.items() if k not in free)


@dataclass(frozen=True)
class Table:
    """A published table. pairs: (teacher, its accuracy, student). rows: label -> the cells of its line."""

    name: str
    title: str
    source: str
    pairs: tuple[tuple[str, float, str], ...]
    rows: Mapping[str, tuple[Cell, ...]]

    @property
    def cells(self) -> list[Cell]:
        """Row by row, without missing cells (nan); a student alone that occurs in several columns comes once."""
        seen: dict[tuple[str, ...], Cell] = {}
        for line in self.rows.values():
            for cell in line:
                if not math.isnan(cell.published):
                    seen.setdefault(tuple(cell.argv()), cell)
        return list(seen.values())


def tables() -> dict[str, Path]:
    """Names of the published tables, and their files."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def read_table(name: str) -> Table:
    """A published table by name, or your own by the path of its .toml file, in which `dataset` may name another data
    set. UserError if there is none, or if a row does not have one value per column."""
    if name.endswith(".toml"):
        path = Path(name)
    else:
        path = tables()[Registry("table", {n: str(p) for n, p in tables().items()}).resolve(name)]
    raw = read_config(path)
    lacking = {"title", "source", "protocol", "epoch", "runs", "pairs", "rows"} - raw.keys()
    if lacking:
        raise UserError(
            f"{path} lacks {', '.join(sorted(lacking))}: see scripts/cifar100/tables/simkd.toml for the format"
        )
    try:
        return _table(path, raw)
    except KeyError as error:
        raise UserError(f"{path}: a pair or a row lacks {error}: see scripts/cifar100/tables/simkd.toml") from error


def _table(path: Path, raw: Mapping[str, Any]) -> Table:
    """The content of a file as a Table; KeyError where a pair or a row lacks an entry."""
    dataset = raw.get("dataset", "cifar100")
    pairs = tuple((p["teacher"], float(p["teacher_accuracy"]), p["student"]) for p in raw["pairs"])
    rows = {}
    for row in raw["rows"]:
        label, published, more = row["label"], row["published"], row.get("more", [""] * len(pairs))
        for values in (published, more):
            if len(values) != len(pairs):
                raise UserError(f"{path}: {label} has {len(values)} values for {len(pairs)} columns")
        source = row.get("source", raw["source"])
        rows[label] = tuple(
            Cell(path.stem, label, *pair, f"{row['flags']} {own}".strip(), float(value), source, dataset)
            for pair, value, own in zip(pairs, published, more, strict=True)
        )
    return Table(path.stem, raw["title"], raw["source"], pairs, rows)


def chosen_cells(table: Table, only: str) -> list[Cell]:
    """Cells whose row or student equals one of the comma-separated words; if none does, those whose row or student
    contains the word. UserError for a word that matches nothing."""
    words = [w.strip().lower() for w in only.split(",") if w.strip()]
    names = {name.lower() for cell in table.cells for name in (cell.row, cell.student)}
    meant: set[str] = set()
    for word in words:
        found = {word} & names or {name for name in names if word in name}
        if not found:
            raise UserError(
                f"--only {word} matches no row and no student of {table.name}; its rows are {', '.join(table.rows)}, "
                f"its students {', '.join(dict.fromkeys(student for _, _, student in table.pairs))}"
            )
        meant |= found
    return [c for c in table.cells if not words or {c.row.lower(), c.student.lower()} & meant]
