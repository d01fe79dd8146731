#!/usr/bin/env python3
"""Accuracy of int8 networks.

    python scripts/studies/int8_table.py --dataset cifar100 --out TABLE.md --row LABEL FILE FILE ...

Each FILE (a repetition of the row) is exported to ONNX, quantised after training with calibration on training samples,
and tested on the whole test set in float32 and in int8, through onnxruntime.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.protocols import DataSet, UserError
from helper.deploy.as_trained import add_as_trained, open_as_trained
from helper.deploy.export import Plain, onnx_function, write_onnx
from helper.deploy.quantize import accuracy, calibration_samples, evaluation_samples, quantize_onnx
from helper.machine.program import ScriptParser, run_script
from helper.networks.load import load_network
from helper.options.quick import normalised
from helper.runs.folder import environment
from helper.tables.runs import mean_std
from helper.tables.writers import as_markdown, publish


def tested(path: Path, data: DataSet, calibration: int) -> tuple[float, float, int, int, int]:
    """(top-1 in float32, top-1 in int8, bytes in float32, bytes in int8, test samples)."""
    network = load_network(path, None, data.num_classes, data.shapes, flag="--path")
    entry, out = network.spec.input, []
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{name}.onnx" for name in ("float32", "int8")]
        write_onnx(Plain(network.tapped()).eval(), torch.rand(2, *data.shapes[entry]), files[0], {})
        print(f"{path}: {quantize_onnx(files[0], files[1], list(calibration_samples(data, entry, calibration)))}")
        for file in files:
            out.append(accuracy(onnx_function(file), evaluation_samples(data, entry)))
        sizes = [file.stat().st_size for file in files]
    return out[0][0], out[1][0], sizes[0], sizes[1], out[0][1]


def main(argv: Sequence[str] | None = None) -> None:
    parser = ScriptParser(description=__doc__)
    parser.add_argument(
        "--row", nargs="+", action="append", required=True, metavar="WORD", help="a label, then its checkpoints"
    )
    add_as_trained(parser)
    parser.add_argument("--calibration", type=int, default=512, help="training samples for calibration")
    parser.add_argument("--title", default="What int8 costs", metavar="TEXT")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    args = parser.parse_args(normalised(argv))
    rows = [(label, [Path(file) for file in files]) for label, *files in args.row]
    if bare := [label for label, files in rows if not files]:
        raise UserError(f"--row {bare[0]} has no checkpoint: write --row LABEL FILE")
    data, _ = open_as_trained(rows[0][1][0], args)
    header, table = ("network", "runs", "float32", "int8", "int8 - float32", "size"), []
    for label, files in rows:
        float32, int8, before, after, samples = zip(*(tested(f, data, args.calibration) for f in files), strict=True)
        gaps = [b - a for a, b in zip(float32, int8, strict=True)]
        size = f"{before[0] / 1e6:.2f} → {after[0] / 1e6:.2f} MB"
        table.append((label, str(len(files)), mean_std(float32), mean_std(int8), mean_std(gaps, "+"), size))
    notes = [
        f"Top-1 in percent on all {samples[0]} test samples of {data.name}, mean ± standard deviation over runs, of "
        "the last epoch. Every network was quantised alike (onnxruntime's static QDQ quantisation, int8 weights with a "
        f"scale for each channel, int8 activations) with {args.calibration} training samples; rows differ in how the "
        "network was trained.",
        "Written by scripts/studies/int8_table.py from the runs of scripts/studies/int8_study.sh. Hardware: "
        f"{environment()['cpu']}.",
    ]
    publish(f"# {args.title}\n\n{as_markdown(header, table, notes)}", args.out)


if __name__ == "__main__":
    run_script(main)
