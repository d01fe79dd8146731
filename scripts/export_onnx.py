#!/usr/bin/env python3
"""Export a network of action recordings as ONNX and report its cost:

    python scripts/export_onnx.py --path STUDENT_best.pth [TEACHER_best.pth] [--out DIR] [--report FILE.md]

The graph of a sensor student holds everything from sensor values to logits, the Gramian field included. The report has
one row per network: parameters, multiply-accumulates, file size, and the latency of one sample on one CPU thread.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.option import whole
from helper.deploy.as_trained import add_network
from helper.deploy.cost import deployed_count, macs
from helper.deploy.export import Plain, latency, onnx_function, onnx_metadata, write_onnx
from helper.deploy.predictor import open_predictor
from helper.deploy.student import Student, load_student
from helper.machine.program import ScriptParser, run_script
from helper.runs.folder import environment, file_name
from helper.tables.writers import as_markdown, publish

MEASURED = "One sample, float32, milliseconds of the processor on one thread, median of {} calls"  # by latency()


@torch.no_grad()
def exported(student: Student, folder: Path, repetitions: int = 30) -> tuple[Path, dict[str, float | str]]:
    """Write the whole network, including the Gramian field, as an ONNX graph; (its file, a row of the report)."""
    reads, target = student.format, folder / f"{file_name(student.name)}.onnx"
    write_onnx(Plain(student.net).eval(), torch.randn(2, *reads.shape), target, onnx_metadata(student.classes, reads))
    x, graph = torch.randn(1, *reads.shape), onnx_function(target)
    return target, {
        "network": student.name,
        "reads": f"{reads.modality or reads.kind} {'x'.join(map(str, reads.shape))}",
        "parameters (M)": deployed_count(student.net.model) / 1e6,
        "MACs (M)": macs(student.net, {reads.kind: reads.shape}, torch.device("cpu")) / 1e6,
        "torch (ms)": latency(lambda: student(x), repetitions),
        "file (MB)": target.stat().st_size / 1e6,
        "onnxruntime (ms)": latency(lambda: graph(x), repetitions),
    }


def as_table(rows: Sequence[dict[str, float | str]]) -> str:
    cells = [[f"{v:.3f}" if isinstance(v, float) else v for v in row.values()] for row in rows]
    return as_markdown(list(rows[0]), cells).rstrip()


def main(argv: Sequence[str] | None = None) -> None:
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add_network(parser, "checkpoints, or folders, of runs on action recordings", nargs="+")
    add("--out", type=Path, default=Path("."), help="folder for the .onnx files", metavar="FOLDER")
    add("--file", type=Path, help="a sensor recording to classify with the exported graph", metavar="FILE")
    add("--report", type=Path, help="also write the table to this file", metavar="FILE")
    add("--repetitions", **whole(1), default=30, help="number of timed calls")
    args = parser.parse_args(argv)
    rows = []
    for path in args.path:
        student = load_student(path, args.model, flag="--model")
        target, row = exported(student, args.out, args.repetitions)
        rows.append(row)
        if args.file is not None:
            (found,) = open_predictor(target)([args.file], 1)
            print(f"{args.file.name}: {found.top[0][0]}")
    cpu = environment()["cpu"]
    publish(f"{as_table(rows)}\n\n{MEASURED.format(args.repetitions)}; {cpu}.", args.report)


if __name__ == "__main__":
    run_script(main)
