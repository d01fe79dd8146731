#!/usr/bin/env python3
"""Measure the cost of a cached teacher without a classifier: python scripts/bench/bench_teachers.py --markdown FILE

resnet20 on random pixels of CIFAR's shape, alone and with --distill embed -d 0, taught by a ViT-B/16 of random weights
that sees 224 px, through --teacher_cache. The first epoch fills the cache; then both train epochs whose views are all
there, in turns, loader included. Target: at most 1.1 times the student alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from helper.machine.devices import pick_device
from helper.machine.program import ScriptParser, run_script
from helper.networks.headless import with_view
from helper.networks.load import Network, without_classifier
from helper.tables.writers import as_markdown
from models import model_dict
from scripts.bench import measuring
from scripts.bench.bench_worker import Ours

TARGET = 1.1


class Taught(Ours):
    """The teacher has no classifier and resizes images. Its weights are in a file, as a cache reads the checksum."""

    def open_teacher(self, request: dict[str, Any]) -> Network:
        random = measuring.random_network(model_dict[request["teacher"]], 1, Path(request["folder"], "teacher.pth"))
        headless = without_classifier(random, "it was left out")
        return with_view(headless, request["teacher_image_size"], self.data.shapes)


def seconds_of_epoch(subject: Ours) -> float:
    """Of the first epoch, trained once more, with its views."""
    subject.loader.set_epoch(1)
    batches = iter(subject.loader)
    return sum(measuring.timed(subject.step, batches, 0, len(subject.loader), subject.device))


def measured(args: argparse.Namespace, folder: Path) -> tuple[float, list[float], list[float]]:
    """Seconds of the epoch that fills the cache; of every round, without and with the teacher."""
    torch.set_num_threads(args.threads)
    measuring.clock = measuring.CLOCKS["cpu"]  # a GPU's seconds are its own
    request = {k: getattr(args, k) for k in ("student", "images", "batch_size", "gpu_id", "teacher_image_size")}
    request |= {"folder": folder, "precision": "fp32", "epochs": 240}
    cached = ["-d", "0", "--teacher_cache", str(folder / "cache")]
    both = Taught(request | {"method": "embed", "teacher": args.teacher, "flags": cached})
    student = Ours(request | {"method": "vanilla", "teacher": args.student, "flags": []})
    filled, _ = seconds_of_epoch(both), seconds_of_epoch(student)  # which also warms both up
    rounds = [(seconds_of_epoch(student), seconds_of_epoch(both)) for _ in range(args.rounds)]
    return filled, [a for a, _ in rounds], [b for _, b in rounds]


def main(argv: Sequence[str] | None = None) -> None:
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add("--teacher", default="torchvision:vit_b_16", help="teacher network")
    add("--teacher_image_size", type=int, default=224, help="side of the teacher's images in pixels")
    add("--student", default="resnet20", help="student network")
    add("--images", type=int, default=128, help="images of an epoch")
    add("--batch_size", type=int, default=64, help="batch size")
    add("--rounds", type=int, default=7, help="timed rounds")
    add("--threads", type=int, default=1, help="threads")
    add("--gpu_id", default="0", help="GPU to use (default 0; without CUDA the CPU, in processor time)", metavar="GPUS")
    add("--markdown", help="also write the table to this file", metavar="FILE")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        filled, alone, taught = measured(args, Path(folder))
    base = statistics.median(alone)
    ratio = measuring.spread("median", [b / a for a, b in zip(alone, taught, strict=True)])
    report = measuring.report(__file__, argv, pick_device(args.gpu_id)[0], [])
    shown = f"{ratio['median']:.3f} ({ratio['median_min']:.3f} to {ratio['median_max']:.3f})"
    rows = [
        ("student alone", f"{base:.3f}", "1.00", ""),
        (
            "taught, every view in the cache",
            f"{statistics.median(taught):.3f}",
            shown,
            measuring.verdict(ratio["median"], TARGET),
        ),
        ("taught, no view in the cache", f"{filled:.3f}", f"{filled / base:.1f}", ""),
    ]
    about = (
        f"{report['device']}, {args.threads} thread(s), {args.images} images in batches of {args.batch_size}, float32, "
        f"torch {report['environment']['versions']['torch']}, {report['date']}, median of {args.rounds} rounds."
    )
    table = as_markdown(("epoch", "seconds", "times the student alone", "target"), rows)
    title = f"A cached headless teacher: {args.teacher} at {args.teacher_image_size} px teaches {args.student}"
    measuring.publish(title, report, [about, table], args.markdown)


if __name__ == "__main__":
    run_script(main)
