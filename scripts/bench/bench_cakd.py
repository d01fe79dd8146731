#!/usr/bin/env python3
"""Cost of CAKD compared with plain KD: python scripts/bench/bench_cakd.py --student ResNet50 ResNet18 --markdown FILE

A training step at 224 px (random images, a ViT teacher with random weights; arithmetic depends on neither) of kd and of
both variants. Every configuration is a process of its own; they take turns, and ratios are taken within a round.
Reported: medians, the range over rounds, multiply-accumulates of a whole step, peak memory. Limits: 1.25 for `code`
and for ResNet18, 1.55 for `paper` on ResNet50.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import atomic_write_json
from core.option import whole
from helper.machine.devices import pick_device
from helper.machine.program import ScriptParser, run_script
from helper.tables.writers import as_markdown
from models import model_dict
from scripts.bench import measuring
from scripts.bench.bench_worker import Ours
from scripts.bench.measuring import Subject, compare, spread

KINDS = {
    "kd": ["kd"],
    "cakd paper": ["cakd", "--cakd_variant", "paper"],
    "cakd code": ["cakd", "--cakd_variant", "code"],
}
CLASSES = 1000
EPOCH = 60  # of 120: the weights of the code variant have grown


def limit(kind: str, student: str) -> float:
    """How many times a step of plain KD this one may take."""
    return 1.55 if kind == "cakd paper" and student == "ResNet50" else 1.25


class Step(Ours):
    """Its turns are averaged: the discriminator's fifth step is in it once per five."""

    average = staticmethod(statistics.mean)

    def finish(self, evaluation: bool) -> dict[str, Any]:
        """The multiply-accumulates are those of a step with an update of the discriminator."""
        self.done = 0
        torch.backends.mha.set_fastpath_enabled(False)  # kernels that the counter does not know
        return super().finish(evaluation)


def measure(student: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    request = {"student": student, "side": args.size, "images": 5 * args.batch_size, "classes": CLASSES}
    request |= {"epoch": EPOCH, "epochs": 120, "teacher": args.teacher, "precision": args.precision}
    subjects = [
        Subject(__file__, f"{kind} on {student}", request | {"method": method, "flags": flags})
        for kind, (method, *flags) in KINDS.items()
    ]
    compare(subjects, args)
    kd = subjects[0]
    return [
        {
            "student": student,
            "kind": kind,
            "step_s": subject.median("step_s"),
            **spread("time_ratio", subject.over(kd)),
            "macs": subject.once["step_macs"],
            "macs_ratio": subject.once["step_macs"] / kd.once["step_macs"],
            "peak_mb": max(t["peak_mb"] for t in subject.turns),
            "limit": None if subject is kd else limit(kind, student),
            "dtype": subject.dtype,
        }
        for kind, subject in zip(KINDS, subjects, strict=True)
    ]


HEADER = ("student", "step", "s/step", "time / kd", "range", "GMACs/image", "MACs / kd", "peak MB", "limit")


def line(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["student"],
        row["kind"],
        f"{row['step_s']:.3f}",
        f"{row['time_ratio']:.3f}",
        f"{row['time_ratio_min']:.3f} to {row['time_ratio_max']:.3f}",
        f"{row['macs'] / 1e9:.2f}",
        f"{row['macs_ratio']:.3f}",
        f"{row['peak_mb']:.0f}",
        measuring.verdict(row["time_ratio"], row["limit"]),
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add("--student", nargs="+", default=["ResNet50", "ResNet18"], help="student networks")
    add("--teacher", default="torchvision:vit_b_16", help="teacher network")
    add("--size", **whole(1), default=224, help="side of the images in pixels")
    add("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="as in training")
    # a multiple of five steps holds the paper's discriminator once
    measuring.add_turns(parser, batch_size=8, steps=5, rounds=3)
    measuring.add_files(parser)
    args = parser.parse_args(argv)
    if args.worker:
        return measuring.serve(args.worker, Step)
    measuring.refuse_clock(args)
    rows = [row for student in args.student for row in measure(model_dict.resolve(student), args)]
    facts = {k: getattr(args, k) for k in ("teacher", "batch_size", "size", "threads", "clock", "steps", "rounds")}
    report = measuring.report(__file__, argv, pick_device(args.gpu_id)[0], rows, **facts)
    about = (
        f"{args.teacher} teaches, {args.size} px, {rows[0]['dtype']}; {measuring.conditions(report, args)}, the "
        "discriminator's among them. MACs and memory of a whole step."
    )
    parts = [about, as_markdown(HEADER, map(line, rows))]
    measuring.publish("A step of CAKD next to one of plain KD", report, parts, args.markdown)
    if args.json:
        atomic_write_json(report, args.json)


if __name__ == "__main__":
    run_script(main)
