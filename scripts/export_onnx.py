#!/usr/bin/env python3
"""Export a network of action recordings as ONNX and report its cost:

    python scripts/export_onnx.py --path STUDENT_best.pth [TEACHER_best.pth] [--out DIR] [--report FILE.md]

The graph of a sensor student holds everything from sensor values to logits, the Gramian field included. The report has
one row per network: parameters, multiply-accumulates, file size, and the latency of one sample on one CPU thread.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.files import atomic_write_text
from core.option import whole
from helper.deploy.as_trained import add_network
from helper.deploy.export import MEASURED, export_onnx, load_classifier, onnx_function, report
from helper.machine.program import run_script
from helper.runs.folder import environment, file_name
from helper.tables.writers import as_markdown


def as_table(rows: Sequence[dict[str, float | str]]) -> str:
    cells = [[f"{v:.3f}" if isinstance(v, float) else v for v in row.values()] for row in rows]
    return as_markdown(list(rows[0]), cells, []).rstrip()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_network(parser, "checkpoints, or folders, of runs on action recordings", nargs="+")
    add("--out", type=Path, default=Path("."), help="folder for the .onnx files", metavar="FOLDER")
    add("--file", type=Path, help="a sensor recording to classify with the exported graph", metavar="FILE")
    add("--report", type=Path, help="also write the table to this file", metavar="FILE")
    add("--repetitions", **whole(1), default=30, help="number of timed calls")
    args = parser.parse_args(argv)
    rows = []
    for path in args.path:
        classifier = load_classifier(path, args.model)
        target = args.out / f"{file_name(classifier.network.spec.name)}.onnx"
        export_onnx(classifier, target)
        rows.append(report(classifier, target, args.repetitions))
        if args.file is not None:
            logits = onnx_function(target)(classifier.read(args.file))
            print(f"{args.file.name}: {classifier.classes[int(logits.argmax())]}")
    cpu = environment()["cpu"]
    text = f"{as_table(rows)}\n\n{MEASURED.format(args.repetitions)}; {cpu}.\n"
    print(text)
    if args.report is not None:
        atomic_write_text(args.report, text)


if __name__ == "__main__":
    run_script(main)
