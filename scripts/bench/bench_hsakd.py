#!/usr/bin/env python3
"""Time of a step of HSAKD and DPCD: python scripts/bench/bench_hsakd.py --json FILE --markdown FILE

Ours against a literal transcription of the published step (usual_hsakd.py), WRN-40-2 teaching WRN-16-2, in bf16 and in
float32, on a CPU or a CUDA device. Every configuration has its own process, they take turns, and ratios are computed
within a round, without loaders. Random pixels of CIFAR-100's shape, random weights: arithmetic does not depend
on them. The page holds each step against its target, of which a CUDA device has its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import atomic_write_json
from helper.machine.devices import pick_device
from helper.machine.program import ScriptParser, run_script
from helper.tables.writers import as_markdown
from scripts.bench import measuring
from scripts.bench.bench_worker import kept
from scripts.bench.measuring import Subject, compare, spread

KEPT = 2  # batches that go round
NETWORKS = {"hsakd": ("wrn_40_2_aux", "wrn_16_2_aux"), "dpcd": ("wrn_40_2_aux_dpcd", "wrn_16_2_aux_dpcd")}
SUBJECTS = [
    (method, kind, dtype)
    for method in NETWORKS
    for kind, dtype in (("usual", "fp32"), ("ours", "fp32"), ("ours", "bf16"))
]
TARGETS = {("hsakd", "fp32"): 1.05, ("hsakd", "bf16"): 1.8, ("dpcd", "fp32"): 1.3, ("dpcd", "bf16"): 1.3}
GPU_TARGETS = {("hsakd", "bf16"): 2.5}


def request_of(method: str, kind: str, dtype: str, images: int) -> dict[str, Any]:
    """What the process of one configuration serves; see bench_worker.py."""
    teacher, student = NETWORKS[method]
    networks = {"teacher": teacher, "student": student, "images": images, "flags": [], "epoch": 61, "epochs": 240}
    return networks | {"kind": "baseline" if kind == "usual" else kind, "method": method, "precision": dtype}


def target_of(method: str, kind: str, dtype: str, on_gpu: bool) -> float | None:
    return None if kind == "usual" else (GPU_TARGETS if on_gpu else TARGETS).get((method, dtype))


def verdicts(row: dict[str, Any]) -> tuple[str, str]:
    """Cells: speed against its target if it has one, memory against the usual step's."""
    if row["step"] == "usual":
        return "", ""
    memory = "PASS" if row["peak_mb"] <= row["usual_peak_mb"] else "FAIL"
    return measuring.verdict(row["speed_up"], row["target"], at_most=False), memory


HEADER = ("method", "step", "", "seconds", "peak MB", "times the usual speed", "speed", "memory")


def line(r: dict[str, Any]) -> tuple[str, ...]:
    speed = f"{r['speed_up']:.2f} ({r['speed_up_min']:.2f} to {r['speed_up_max']:.2f})"
    return (r["method"], r["step"], r["dtype"], f"{r['step_s']:.3f}", f"{r['peak_mb']:.0f}", speed, *verdicts(r))


def measure(args: argparse.Namespace, on_gpu: bool) -> list[dict[str, Any]]:
    subjects = {
        names: Subject(__file__, " ".join(names), request_of(*names, images=KEPT * args.batch_size))
        for names in SUBJECTS
        if names[0] in args.methods
    }
    compare(list(subjects.values()), args)
    rows = []
    for (method, kind, dtype), subject in subjects.items():
        usual = subjects[method, "usual", "fp32"]
        rows.append(
            {
                "method": method,
                "step": kind,
                "dtype": dtype,
                "step_s": subject.median("step_s"),
                "peak_mb": subject.turns[-1]["peak_mb"],
                **spread("speed_up", usual.over(subject)),
                "target": target_of(method, kind, dtype, on_gpu),
                "usual_peak_mb": usual.turns[-1]["peak_mb"],
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = ScriptParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    measuring.add_turns(parser, batch_size=64, steps=3, rounds=3)
    measuring.add_files(parser)
    args = parser.parse_args(argv)
    if args.worker:
        return measuring.serve(args.worker, lambda request: kept(request, KEPT))
    measuring.refuse_clock(args)
    device, _ = pick_device(args.gpu_id)
    on_gpu = device.type == "cuda"
    report = measuring.report(__file__, argv, device, measure(args, on_gpu))
    tf32 = ", TF32 in convolutions, as torch has it by default" if on_gpu else ""
    about = (
        f"{measuring.conditions(report, args)}; the usual step is a literal transcription of the published one, in "
        f"float32{tf32}. Targets are of speed, and memory no higher than the usual step's."
    )
    parts = [about, as_markdown(HEADER, map(line, report["rows"]))]
    measuring.publish("A step of HSAKD and of DPCD", report, parts, args.markdown)
    if args.json:
        atomic_write_json(report, args.json)


if __name__ == "__main__":
    run_script(main)
