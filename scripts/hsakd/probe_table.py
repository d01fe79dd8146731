#!/usr/bin/env python3
"""Table of linear probes: python scripts/hsakd/probe_table.py FOLDER [--out FILE]

Reads what eval_rep.py --json wrote, one file "METHOD RATIO SOLVER SEED.json" each; probes that differ in the seed alone
are averaged. Nothing is typed.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import read_json
from core.protocols import UserError
from helper.machine.program import ScriptParser, run_script
from helper.tables.runs import mean_std
from helper.tables.writers import as_markdown, publish


def main(argv: list[str] | None = None) -> None:
    parser = ScriptParser(description=__doc__)
    parser.add_argument("folder", help="folder of the files of eval_rep.py --json")
    parser.add_argument("--out", help="also write the table to this file", metavar="FILE")
    args = parser.parse_args(argv)
    groups: dict[tuple[str, ...], list[dict]] = {}
    for path in sorted(Path(args.folder).glob("*.json")):
        if len(words := path.stem.split(" ")) == 4:
            groups.setdefault(tuple(words[:-1]), []).append(
                read_json(path, {"dataset": str}, "delete it, or write it again")
            )
    if not groups:
        raise UserError(f"{args.folder} holds no results of eval_rep.py --json, named METHOD RATIO SOLVER SEED.json")
    first = next(iter(groups.values()))[0]
    images = ""
    if "images" in first:
        images = "{:,} images train the probe, {:,} test it. ".format(*first["images"])
    text = [
        f"# Linear probe on {first['dataset']}",
        "Frozen features of the last epoch, each computed once; top-1 in percent on the validation images, mean and "
        f"standard deviation over seeds. {images}SGD: of its last epoch, the best one in brackets, which the same "
        "images chose.",
        f"{first['environment']['cpu']}, commit {first['environment']['commit']}",
    ]
    header, rows = ("student", "share of CIFAR-100", "solver", "top-1", "best", "seeds"), []
    for (method, ratio, solver), found in sorted(groups.items()):
        name = "alone" if method == "vanilla" else method
        top, best = ([r[key] for r in found] for key in ("top1", "best"))
        seeds = ", ".join(str(r["manual_seed"]) for r in found)
        shown_best = f"[{statistics.mean(best):.2f}]" if solver == "sgd" else ""
        rows.append((name, ratio, solver, mean_std(top), shown_best, seeds))
    publish("\n\n".join([*text, as_markdown(header, rows)]), args.out)


if __name__ == "__main__":
    run_script(main)
