"""Published tables as data (scripts/cifar100/tables/*.toml): every cell with its command, its number and its source."""

from __future__ import annotations

import json
import math
import shlex
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from core.files import ROOT
from core.protocols import Side, UserError
from core.registry import Registry
from helper.options.parse import parse
from helper.options.settings import Settings
from models import model_for

IMAGE = (3, 32, 32)


FOLDER = ROOT / "scripts" / "cifar100" / "tables"


TEACHER_PATH = "./save/teachers/models/{0}_vanilla/{0}_best.pth"


EPOCHS, IMAGES = 240, 50_000  # of one published run, first stages aside


# From the wall-clock that the SimKD toolbox publishes for resnet32x4 (2:24 h), KD (1:12) and resnet8x4 alone (1:05):
RATE, LOADER_HOURS = 9e12, 1.1  # FLOP/s of networks that fill an RTX 2080 Ti; the published loader's least for EPOCHS


@dataclass(frozen=True)
class Cell:
    """One number of a table. published: top-1 in percent, nan where the table has none. flags: of train_student.py.
    clock: the wall-clock its publication prints, as 1:12; "" where it prints none."""

    table: str
    row: str
    teacher: str
    student: str
    flags: str
    published: float
    source: str
    dataset: str = "cifar100"
    clock: str = ""

    @property
    def alone(self) -> bool:
        """Whether the student trains without the teacher."""
        return "--distill vanilla" in self.flags

    def argv(self, trial: int | str = 0) -> list[str]:
        path = [] if self.alone else ["--path_t", TEACHER_PATH.format(self.teacher)]
        return [*path, *shlex.split(self.flags), *self._common, "--trial", str(trial)]

    @property
    def _common(self) -> list[str]:
        return ["--model_s", self.student, "--dataset", self.dataset]

    def command(self, trial: int | str = 0) -> str:
        return " ".join(["python train_student.py", *self.argv(trial)])

    @cached_property
    def settings(self) -> Settings:
        return parse(self.argv(), teacher=False)

    def fits(self, identity: Mapping[str, Any], arch_t: str | None) -> bool:
        """Whether a run (identity of its args.json, teacher of its parameters.json) is this cell's experiment.

        Trial, seed, precision and the pieces of evidence (checksums) may differ; every other setting counts, where
        it existed when the run was recorded.
        """
        if self.alone != (arch_t is None) or (arch_t is not None and arch_t.removesuffix("_cifar") != self.teacher):
            return False
        free = {"trial", "seed", "precision", "deterministic"}
        mine = json.loads(json.dumps(self.settings.identity))  # args.json knows no tuples
        return all(identity.get(k, v) == v for k, v in mine.items() if k not in free)


@dataclass(frozen=True)
class Table:
    """A published table. pairs: (teacher, student, accuracy of the teacher). rows: label -> the cells of its line."""

    name: str
    title: str
    source: str
    protocol: str
    epoch: str
    runs: str
    pairs: tuple[tuple[str, str, float], ...]
    rows: Mapping[str, tuple[Cell, ...]]

    @property
    def cells(self) -> list[Cell]:
        """Row by row, without those the published table leaves out (nan); a student alone that stands in several
        columns comes once."""
        seen: dict[str, Cell] = {}
        for line in self.rows.values():
            for cell in line:
                if not math.isnan(cell.published):
                    seen.setdefault(cell.command(), cell)
        return list(seen.values())

    @property
    def teachers(self) -> dict[str, float]:
        """Teacher -> published accuracy, in the order of the columns."""
        return {teacher: accuracy for teacher, _, accuracy in self.pairs}


def tables() -> dict[str, Path]:
    """Names of the published tables, and their files."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def read_table(name: str) -> Table:
    """A published table by name, or one of your own by the path of its .toml file, in which `dataset` may name another
    data set. UserError where there is none, or where a row does not have one value per column."""
    if name.endswith(".toml"):
        path = Path(name)
    else:
        path = tables()[Registry("table", {n: str(p) for n, p in tables().items()}).resolve(name)]
    try:
        raw = tomllib.loads(path.read_text())
        lacking = {"title", "source", "protocol", "epoch", "runs", "pairs", "rows"} - raw.keys()
    except OSError as error:
        raise UserError(f"cannot read the table {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not a TOML file: {error}") from error
    if lacking:
        raise UserError(
            f"{path} has no {', '.join(sorted(lacking))}; scripts/cifar100/tables/simkd.toml shows the form"
        )
    dataset = raw.get("dataset", "cifar100")
    pairs = tuple((p["teacher"], p["student"], float(p["teacher_accuracy"])) for p in raw["pairs"])
    rows = {}
    for row in raw["rows"]:
        clocks, more = (row.get(key, [""] * len(pairs)) for key in ("clock", "more"))
        for values in (row["published"], clocks, more):
            if len(values) != len(pairs):
                raise UserError(f"{path}: {row['label']} has {len(values)} values for {len(pairs)} columns")
        rows[row["label"]] = tuple(
            Cell(
                path.stem,
                row["label"],
                teacher,
                student,
                f"{row['flags']} {own}".strip(),
                float(value),
                row.get("source", raw["source"]),
                dataset,
                clock,
            )
            for (teacher, student, _), value, clock, own in zip(pairs, row["published"], clocks, more, strict=True)
        )
    return Table(path.stem, raw["title"], raw["source"], raw["protocol"], raw["epoch"], raw["runs"], pairs, rows)


def epochs_of(cell: Cell, stages: int) -> list[int]:
    """Of each of a method's stages."""
    return [cell.settings.training.schedule.init_epochs] * (stages - 1) + [EPOCHS]


def petaflop(cell: Cell, macs: Sequence[int]) -> float:
    """Arithmetic of one run in 1e15 floating-point operations. macs: helper.deploy.cost.training_macs."""
    return 2 * IMAGES * sum(e * m for e, m in zip(epochs_of(cell, len(macs)), macs, strict=True)) / 1e15


def hours(cell: Cell, macs: Sequence[int]) -> float:
    """Estimate for the published toolboxes on one RTX 2080 Ti, from three wall-clocks that the SimKD toolbox prints."""
    reading = LOADER_HOURS * sum(epochs_of(cell, len(macs))) / EPOCHS
    return max(reading, petaflop(cell, macs) * 1e15 / RATE / 3600)


def as_script(table: Table, macs: Callable[[Cell], Sequence[int]]) -> str:
    """The table as literal commands, one per cell, each below its published number and its expected cost.

    macs: of a cell, as petaflop() takes them.
    """
    lines = [
        "#!/usr/bin/env bash",
        f"# {table.title}: one command per cell. `run_table.py --write` made it of tables/{table.name}.toml.",
        f"#   source     {table.source}",
        f"#   protocol   {table.protocol}",
        f"#   published  top-1 in percent; epoch: {table.epoch}; number of runs: {table.runs}",
        "#   cost       PFLOP of the two networks, the method's own layers and first stage, without losses and memory",
        "#              banks; hours are for the published toolboxes on one RTX 2080 Ti: a wall-clock where they print",
        "#              one, else an estimate, PFLOP / 9 TFLOP/s but at least 1.1 h for 240 epochs",
        f"# All of it, on all GPUs, skipping what is finished: bash scripts/run_table.sh {table.name} --trials 3",
        f"# Teachers: {', '.join(f'{t} ({a:.2f})' for t, a in table.teachers.items())}; "
        "bash scripts/teachers/fetch_teachers.sh or bash scripts/teachers/train_teachers.sh",
        f"#   bash scripts/cifar100/{table.name}_table.sh [flags of training, such as --data_folder ../data/]",
        'extra=("$@")',
        'source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"',
        'python() { "$PYTHON" "$@" ${extra[@]+"${extra[@]}"}; }',
    ]
    last = None
    for cell in sorted(table.cells, key=lambda c: [(t, s) for t, s, _ in table.pairs].index((c.teacher, c.student))):
        if (cell.teacher, cell.student) != last:
            last = (cell.teacher, cell.student)
            lines += ["", f"# ---- {cell.teacher} -> {cell.student}"]
        cost = macs(cell)
        time = f"{cell.clock} h by their clock" if cell.clock else f"about {hours(cell, cost):.1f} h"
        lines += [f"# {cell.row}: {cell.published:.2f}; {petaflop(cell, cost):.1f} PFLOP, {time}", cell.command()]
    return "\n".join(lines) + "\n"


def chosen_cells(table: Table, only: str) -> list[Cell]:
    """Cells whose row or student is called as one of the words separated by commas; where none is, those whose row or
    student holds the word. UserError for a word that chooses nothing."""
    words = [w.strip().lower() for w in only.split(",") if w.strip()]
    names = {name.lower() for cell in table.cells for name in (cell.row, cell.student)}
    meant: set[str] = set()
    for word in words:
        found = {word} & names or {name for name in names if word in name}
        if not found:
            raise UserError(
                f"--only {word} names no row and no student of {table.name}; its rows are {', '.join(table.rows)}, its "
                f"students {', '.join(dict.fromkeys(student for _, student, _ in table.pairs))}"
            )
        meant |= found
    return [c for c in table.cells if not words or {c.row.lower(), c.student.lower()} & meant]


def write_scripts() -> None:
    """Bring scripts/cifar100/*_table.sh in line with the tables."""
    for name in tables():
        path = FOLDER.parent / f"{name}_table.sh"
        path.write_text(literal(name))
        print(f"wrote {path.relative_to(ROOT)}")


def literal(name: str) -> str:
    return as_script(read_table(name), macs_of)


def macs_of(cell: Cell) -> list[int]:
    """Multiply-accumulates of training on one image, per stage of the method."""
    from helper.deploy.cost import training_macs

    student, forward = counted(cell.student)
    teacher, forward_t = (None, 0) if cell.alone else counted(cell.teacher)
    forwards = {student.spec.name: forward} | ({} if teacher is None else {teacher.spec.name: forward_t})
    return training_macs(cell.settings.method, cell.settings.config, student, teacher, forwards)


@cache
def counted(name: str) -> tuple[Side, int]:
    """A network of the tables as methods see it, and its multiply-accumulates for one image."""
    import torch

    from core.taps import TappedNet, probe
    from helper.deploy.cost import macs

    spec = model_for(name, IMAGE)
    net, images = TappedNet(spec(num_classes=100), spec, tuple(spec.taps)), {"image": IMAGE}
    return probe(net, images), macs(net, images, torch.device("cpu"))
