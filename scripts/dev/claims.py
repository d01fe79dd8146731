#!/usr/bin/env python3
"""Write what is checked and measured of every method: python scripts/dev/claims.py [--out results/README.md]

It reads the tables in results/, and the golden files and reference implementations of the tests; nothing is typed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import ROOT, atomic_write_text
from distiller_zoo import method_dict
from helper.machine.program import ScriptParser
from helper.options.naming import published_name
from helper.tables.writers import as_markdown

EPOCHS = 240  # of the full protocol
RESULTS = ROOT / "results"
TESTS = ROOT / "tests"
ABOUT = """# What is checked and what is measured

`python scripts/dev/claims.py` writes this page from the files that it links to. Columns of the first table:

- golden: loss and gradients agree with numbers that the published code produced.
- reference: the loss agrees with a literal transcription of the method's equations.
- loop: training steps agree with those of the published code.
- gain: points of top-1 over the student alone under the same protocol, in the last epoch; bold if the student became
  worse. The full protocol is {epochs} epochs on a complete data set; every other study is short.

An empty cell: no file names the method. Short studies show that a method trains. They do not rank methods, and cannot
be compared with published numbers.
"""


@dataclass(frozen=True)
class Study:
    """One row of a table in results/. gain: None of a student alone, and where the table holds none of its protocol."""

    file: str
    label: str
    method: str  # of the registry, "" where it is a combination; vanilla: the student alone
    pair: str
    accuracy: str
    published: str
    gain: float | None
    runs: str
    data: str
    epochs: int
    complete: bool

    @property
    def full(self) -> bool:
        return self.complete and self.epochs >= EPOCHS

    @property
    def linked(self) -> str:
        text = "no student alone" if self.gain is None else f"{self.gain:+.2f}"
        return f"**[{text}]({self.file})**" if self.gain is not None and self.gain < 0 else f"[{text}]({self.file})"


def meant(name: str) -> str:
    """The method that a golden case or a reference function is about: of its name, of the longest beginning of it, or
    the only one whose name begins with it. "" where there is none."""
    words = name.split("_")
    known = {*method_dict, *method_dict.aliases}
    starts = ("_".join(words[:n]) for n in range(len(words), 0, -1))
    longer = [method for method in method_dict if method.startswith(f"{name}_")]
    return next((method_dict.resolve(s) for s in starts if s in known), longer[0] if len(longer) == 1 else "")


def golden() -> dict[str, dict[str, int]]:
    """method -> golden file -> cases; the training loop's trajectories stand under a file of their own."""
    found: dict[str, dict[str, int]] = {}
    for path in sorted((TESTS / "golden").glob("*.json")):
        content = json.loads(path.read_text())
        names = [case["name"] for kind in ("cases", "trajectories") for case in content.get(kind, ())]
        names += [run["method"] for run in content.get("runs", ())]
        names += [] if names else [key for key in content if key.startswith("rkd_")]
        names += [path.stem] if path.stem in method_dict else []
        for name in names:
            if method := meant(name):
                files = found.setdefault(method, {})
                files[path.name] = files.get(path.name, 0) + 1
    return found


def references() -> dict[str, list[str]]:
    """method -> test files that write its equations out."""
    found: dict[str, list[str]] = {}
    for path in sorted((TESTS / "support").glob("reference_*.py")):
        for name in re.findall(r"^def (\w+)\(", path.read_text(), re.M):
            if method := meant(name):
                found.setdefault(method, []).append(f"support/{path.name}")
    for name in method_dict:
        if (TESTS / "distiller_zoo" / f"test_{name}.py").exists():
            found.setdefault(name, []).append(f"distiller_zoo/test_{name}.py")
    return {method: list(dict.fromkeys(files)) for method, files in found.items()}


def networks() -> list[list[str]]:
    """A row for each golden file of networks: how many it holds."""
    found = []
    for path in sorted((TESTS / "golden").glob("*.json")):
        count = sum(isinstance(v, dict) and "params" in v for v in json.loads(path.read_text()).values())
        if count:
            found.append([links([path.name], "golden/"), str(count)])
    return found


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def studies(path: Path) -> list[Study]:
    """The rows of students in a table as make_table.py writes it; [] where the file holds no such table."""
    lines = path.read_text().splitlines()
    start = next((i for i, line in enumerate(lines) if {"method", "network", "last epoch"} <= set(cells(line))), None)
    if start is None:
        return []
    protocols = {n: text for n, text in re.findall(r"^Protocol( \[\d+\])?: (.*)$", path.read_text(), re.M)}
    header, found = cells(lines[start]), []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        row = dict(zip(header, cells(line), strict=True))
        name = row["method"].split(",")[0].replace("student alone", "vanilla")
        parts = name.split("+")
        if any(part not in {*method_dict, *method_dict.aliases} for part in parts):
            continue
        protocol = protocols[f" {row['protocol']}" if row.get("protocol") else ""]
        epochs = re.search(r"(\d+) epochs", protocol)
        assert epochs is not None, (path, protocol)
        found.append(
            Study(
                path.name,
                row["method"],
                method_dict.resolve(name) if len(parts) == 1 else "",
                f"{row['teacher']} → {row['network']}" if row.get("teacher") else row["network"],
                row["last epoch"],
                row.get("published", ""),
                float(row["gain"]) if row.get("gain") else None,
                row["runs"],
                protocol.split(",")[0],
                int(epochs[1]),
                "few_ratio" not in protocol,
            )
        )
    return found


def links(files: Iterable[str], folder: str) -> str:
    return ", ".join(f"[{Path(file).stem}](../tests/{folder}{file})" for file in files)


def claims(measured: Sequence[Study]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): one row a method of the registry, under its published name."""
    by_numbers, by_equations = golden(), references()
    rows = []
    for method in sorted(set(method_dict) - {"vanilla"}, key=published_name):
        files = by_numbers.get(method, {})
        mine = [study for study in measured if study.method == method]
        rows.append(
            [
                published_name(method),
                links((file for file in files if file != "trajectories.json"), "golden/"),
                links(by_equations.get(method, ()), ""),
                links((file for file in files if file == "trajectories.json"), "golden/"),
                ", ".join(study.linked for study in mine if not study.full),
                ", ".join(study.linked for study in mine if study.full),
            ]
        )
    return ["method", "golden", "reference", "loop", "short study: gain", "full protocol: gain"], rows


def losing(measured: Sequence[Study]) -> str:
    lost = [s for s in measured if s.gain is not None and s.gain < 0]
    of = sum(s.gain is not None for s in measured)
    names = "; ".join(f"{s.label} ({s.pair}) {s.linked}" for s in lost)
    return f"{len(lost)} of {of} measured settings made the student worse: {names}."


def beside_published(measured: Sequence[Study]) -> str:
    """What was trained under the full protocol, next to the published number; "" where nothing was."""
    rows = [
        [f"[{s.label}]({s.file})", s.pair, s.accuracy, s.published, difference(s), s.runs] for s in measured if s.full
    ]
    table = as_markdown(["setting", "networks", "last epoch", "published", "difference", "runs"], rows)
    return f"## Full protocol\n\n{table}" if rows else ""


def difference(study: Study) -> str:
    return f"{float(study.accuracy.split()[0]) - float(study.published):+.2f}" if study.published else ""


def page() -> str:
    measured = [study for path in sorted(RESULTS.glob("*.md")) if path.name != "README.md" for study in studies(path)]
    header = ["setting", "networks", "last epoch", "gain", "runs", "data", "epochs"]
    rows = [
        [s.label, s.pair, s.accuracy, s.linked, s.runs, s.data + ("" if s.complete else ", a part"), str(s.epochs)]
        for s in measured
        if s.method != "vanilla"
    ]
    parts = [
        ABOUT.format(epochs=EPOCHS),
        f"Settings measured under the full protocol: {sum(s.full for s in measured)}.\n\n{losing(measured)}\n",
        *filter(None, [beside_published(measured)]),
        as_markdown(*claims(measured)),
        "## Networks whose outputs agree with the published code\n",
        as_markdown(["golden file", "networks"], networks()),
        "## Every setting measured\n",
        as_markdown(header, rows),
        "## Other measurements\n",
    ]
    text = "\n".join(parts)
    others = [p for p in sorted(RESULTS.glob("*.md")) if p.name != "README.md" and f"({p.name})" not in text]
    return text + "\n" + "\n".join(f"- [{title(path)}]({path.name})" for path in others) + "\n"


def title(path: Path) -> str:
    """The first heading or words of a page."""
    lines = (line.strip("#<>!- ").strip() for line in path.read_text().splitlines())
    return next((line for line in lines if line), path.stem)[:100].replace("|", "")


def main(argv: Sequence[str] | None = None) -> None:
    parser = ScriptParser(description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / "README.md",
        help="file to write (default results/README.md)",
        metavar="FILE",
    )
    args = parser.parse_args(argv)
    atomic_write_text(args.out, page())
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
