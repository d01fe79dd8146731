#!/usr/bin/env python3
"""What a cached teacher without a classifier costs a student: python scripts/bench/bench_teachers.py --markdown FILE

resnet20 on random pixels of CIFAR's shape, alone and with --distill embed -d 0, taught by a ViT-B/16 of random weights
that sees 224 px, through --teacher_cache. The first epoch fills the cache; then both train epochs whose views are all
there, in turns, loader included. Target: at most TARGET times the student alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import atomic_save
from core.protocols import Progress, TeacherSource
from dataset.images.resident import ResidentData
from helper.evaluation.metrics import Meter
from helper.machine.devices import pick_device
from helper.machine.kernels import Hardware, pick_kernels
from helper.machine.program import run_script
from helper.networks.checkpoint import Checkpoint
from helper.networks.headless import with_view
from helper.networks.load import Network, without_classifier
from helper.opening import shared_source
from helper.options.parse import parse
from helper.options.settings import Settings
from helper.training import optim, stages
from helper.training.step import StepSetup
from models import model_dict
from scripts.bench import measuring
from scripts.bench.bench_worker import LONG_RUN, random_data

TARGET = 1.1


def headless_teacher(name: str, size: int, folder: Path, data: ResidentData) -> Network:
    """Random weights, in a file, without a classifier; it resizes images to `size`."""
    random, path = measuring.random_network(model_dict[name], 1), folder / "teacher.pth"
    atomic_save(random.checkpoint.state, path)
    network = Network(random.spec, random.model, Checkpoint(path, random.checkpoint.state))
    return with_view(without_classifier(network, "it was left out"), size, data.shapes)


def epochs_of(
    settings: Settings, data: ResidentData, teacher: Network | None, source: TeacherSource | None, hardware: Hardware
) -> Callable[[], float]:
    """A function that trains the first epoch once more, with its views, and says how many seconds that took."""
    batch_size, device = settings.training.loop.batch_size, hardware.device
    make = optim.optimizer(settings.training.optim, settings.training.schedule.learning_rate)
    setup = StepSetup(make, device, hardware.autocast, kernels=hardware.kernels)
    plan, student = stages.StagePlan(batch_size, epochs=240), model_dict[settings.model]
    step = measuring.step_of(settings.method, settings.config, student, teacher, data, setup, plan, source)
    loader = data.train_loader(batch_size, seed=0, device=device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    clock = time.perf_counter if device.type == "cuda" else time.process_time

    def epoch() -> float:
        meter = Meter(device)
        loader.set_epoch(1)
        wait()
        started = clock()
        for i, batch in enumerate(loader):
            result = step(batch, Progress(1, 240, i, len(loader)))
            meter.update(result.loss, result.logits, result.target, result.terms, i)
        meter.read()
        wait()
        return clock() - started

    return epoch


def measured(args: argparse.Namespace, folder: Path) -> tuple[float, list[float], list[float]]:
    """Seconds of the epoch that fills the cache; of every round, without and with the teacher."""
    torch.set_num_threads(args.threads)
    common = ["--model_s", args.student, "--batch_size", str(args.batch_size)]
    alone = parse(["--distill", "vanilla", *common], teacher=False)
    taught = ["--distill", "embed", "-d", "0", "--teacher_cache", str(folder / "cache"), *common]
    settings = parse(taught, teacher=False)
    device, _ = pick_device(args.gpu_id)
    kernels, _ = pick_kernels(settings.machine.kernels, device, LONG_RUN, False)
    hardware, data = Hardware(device, None, kernels), random_data(args.images)
    teacher = headless_teacher(args.teacher, args.teacher_image_size, folder, data)
    source = shared_source([settings], teacher, data, hardware)
    both = epochs_of(settings, data, teacher, source, hardware)
    student = epochs_of(alone, data, None, None, hardware)
    filled, _ = both(), student()  # which also warms both up
    rounds = [(student(), both()) for _ in range(args.rounds)]
    return filled, [a for a, _ in rounds], [b for _, b in rounds]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--teacher", default="torchvision:vit_b_16")
    add("--teacher_image_size", type=int, default=224)
    add("--student", default="resnet20")
    add("--images", type=int, default=128, help="of an epoch (default 128)")
    add("--batch_size", type=int, default=64)
    add("--rounds", type=int, default=7)
    add("--threads", type=int, default=1)
    add("--gpu_id", default="0", help="without CUDA, the CPU, and seconds of the processor", metavar="GPUS")
    add("--markdown", help="write a table there", metavar="FILE")
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
    lines = [
        f"`{report['command']}`",
        "",
        f"{report['device']}, {args.threads} thread(s), {args.images} images in batches of {args.batch_size}, float32, "
        f"torch {report['environment']['versions']['torch']}, {report['date']}, median of {args.rounds} rounds.",
        "",
        *measuring.table(("epoch", "seconds", "times the student alone", "target"), rows),
    ]
    title = f"A cached headless teacher: {args.teacher} at {args.teacher_image_size} px teaches {args.student}"
    measuring.publish(title, lines, args.markdown)


if __name__ == "__main__":
    run_script(main)
