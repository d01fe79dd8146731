#!/usr/bin/env python3
"""What a cached teacher without a classifier costs a student: python scripts/bench/bench_teachers.py --markdown FILE

resnet20 on random pixels of CIFAR's shape, alone and with --distill embed -d 0, taught by a ViT-B/16 of random weights
that sees 224 px, through --teacher_cache. The first epoch fills the cache; then both train epochs whose views are all
there, in turns, loader included. Target: at most TARGET times the student alone.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import atomic_save, atomic_write_text
from core.protocols import Progress, TeacherSource
from dataset.base import Split
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
from helper.runs.folder import environment
from helper.training import optim, stages
from helper.training.step import StepSetup
from models import model_dict

CLASSES, LONG_RUN, TARGET = 100, 10**6, 1.1


def random_data(count: int) -> ResidentData:
    images = torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(count) % CLASSES)
    return ResidentData("random", [str(k) for k in range(CLASSES)], split, split, flips=True)


def headless_teacher(name: str, size: int, folder: Path, data: ResidentData) -> Network:
    """Random weights, in a file, without a classifier; it resizes images to `size`."""
    torch.manual_seed(0)
    spec, path = model_dict[name], folder / "teacher.pth"
    model = spec(num_classes=1)
    atomic_save(model.state_dict(), path)
    network = without_classifier(Network(spec, model, Checkpoint(path, model.state_dict())), "it was left out")
    return with_view(network, size, data.shapes)


def epochs_of(
    settings: Settings, data: ResidentData, teacher: Network | None, source: TeacherSource | None, hardware: Hardware
) -> Callable[[], float]:
    """A function that trains the first epoch once more, with its views, and says how many seconds that took."""
    batch_size, device = settings.training.loop.batch_size, hardware.device
    *_, stage = stages.build_stages(
        settings.method,
        settings.config,
        model_dict[settings.model],
        teacher,
        data,
        StepSetup(
            optim.optimizer(settings.training.optim, settings.training.schedule.learning_rate),
            device,
            hardware.autocast,
            kernels=hardware.kernels,
        ),
        stages.StagePlan(batch_size, epochs=240),
        source,
    )
    loader = data.train_loader(batch_size, seed=0, device=device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    stage.step.train()

    def epoch() -> float:
        meter = Meter(device)
        loader.set_epoch(1)
        wait()
        started = clock()
        for i, batch in enumerate(loader):
            result = stage.step(batch, Progress(1, 240, i, len(loader)))
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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", default="torchvision:vit_b_16")
    parser.add_argument("--teacher_image_size", type=int, default=224)
    parser.add_argument("--student", default="resnet20")
    parser.add_argument("--images", type=int, default=128, help="of an epoch (default 128)")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--gpu_id", default="0", help="without CUDA, the CPU, and seconds of the processor", metavar="GPUS"
    )
    parser.add_argument("--markdown", help="write a table there", metavar="FILE")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        filled, alone, taught = measured(args, Path(folder))
    ratios = [b / a for a, b in zip(alone, taught, strict=True)]
    ratio, found = statistics.median(ratios), environment()
    command = shlex.join(["python", "scripts/bench/bench_teachers.py", *(sys.argv[1:] if argv is None else argv)])
    lines = [
        f"# A cached headless teacher: {args.teacher} at {args.teacher_image_size} px teaches {args.student}",
        "",
        f"`{command}`",
        "",
        f"{found['gpus'][0] if found['gpus'] else found['cpu']}, {args.threads} thread(s), {args.images} images in "
        f"batches of {args.batch_size}, float32, torch {torch.__version__.partition('+')[0]}, "
        f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}, median of {args.rounds} rounds.",
        "",
        "| epoch | seconds | times the student alone | target |",
        "|---|---|---|---|",
        f"| student alone | {statistics.median(alone):.3f} | 1.00 | |",
        f"| taught, every view in the cache | {statistics.median(taught):.3f} | {ratio:.3f} ({min(ratios):.3f} to "
        f"{max(ratios):.3f}) | {TARGET} {'PASS' if ratio <= TARGET else 'FAIL'} |",
        f"| taught, no view in the cache | {filled:.3f} | {filled / statistics.median(alone):.1f} | |",
    ]
    print("\n".join(lines))
    if args.markdown:
        atomic_write_text(args.markdown, "\n".join(lines) + os.linesep)


if __name__ == "__main__":
    run_script(main)
