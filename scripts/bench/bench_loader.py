#!/usr/bin/env python3
"""Compare the training loaders on an image folder with torchvision's reference loader (Pillow), in images per second.

    python scripts/bench/bench_loader.py --data_folder DIR [--size 224] [--workers N] [--clock cpu] [--out FILE.json]

Every loader crops, flips and yields normalised float batches on the device; the reference is ImageFolder with
RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize behind a DataLoader with as many workers. Rounds
alternate between the loaders, files are in the page cache after the first, which is not counted. --clock cpu counts the
processor seconds of this process and its workers, which other work on the machine changes little; the process then
computes on one thread, as threads that wait for each other would count.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import atomic_write_json
from core.machine import usable_cores
from core.protocols import UserError
from core.taps import normalised
from dataset import dataset_dict
from dataset.base import data_options
from dataset.images.files import Files, find_root
from helper.machine.devices import pick_device
from helper.machine.kernels import tune_allocator
from helper.machine.program import ScriptParser, run_script
from helper.runs.folder import environment
from models._common import IMAGENET_MEAN, IMAGENET_STD

LOADERS: dict[str, dict[str, Any]] = {
    "folder": {},
    "folder reduced": {"reduced_decode": True},
    "dali cpu": {"dali": "cpu"},
    "dali gpu": {"dali": "gpu"},
}


def ours(args: argparse.Namespace, device: torch.device, flags: Mapping[str, Any]) -> Callable[[int], Iterator[int]]:
    options = data_options(args.data_folder, image_size=args.size, num_workers=args.workers, **flags)
    data = dataset_dict["imagenet"](options)
    files = data.train
    data.train = Files(files.root, files.paths * args.passes, files.labels.repeat(args.passes))
    loader = data.train_loader(args.batch_size, seed=0, device=device, drop_last=True)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))

    def epoch(number: int) -> Iterator[int]:
        loader.set_epoch(number)
        for batch in loader:
            yield len(normalised(batch.inputs["image"], mean, std))  # as the network does

    return epoch


def reference(args: argparse.Namespace, device: torch.device) -> Callable[[int], Iterator[int]]:
    from torchvision import datasets, transforms

    steps = [transforms.RandomResizedCrop(args.size), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    transform = transforms.Compose([*steps, transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    images = datasets.ImageFolder(str(find_root(args.data_folder) / "train"), transform)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.ConcatDataset([images] * args.passes),
        args.batch_size,
        shuffle=True,
        num_workers=args.workers,
        pin_memory=device.type == "cuda",
        drop_last=True,
        persistent_workers=args.workers > 0,
    )

    def epoch(number: int) -> Iterator[int]:
        for image, _ in loader:
            yield len(image.to(device, non_blocking=True))

    return epoch


def processor_time() -> float:
    """Seconds that this process and its workers have computed."""
    workers = [psutil.Process(worker.pid) for worker in multiprocessing.active_children()]
    return time.process_time() + sum(w.cpu_times().user + w.cpu_times().system for w in workers)


SECOND = {"wall": "second", "cpu": "second of processor time"}
CLOCKS = {"wall": time.perf_counter, "cpu": processor_time}


def img_per_s(
    epoch: Callable[[int], Iterator[int]], number: int, device: torch.device, clock: Callable[[], float]
) -> float:
    started, images = clock(), 0
    for count in epoch(number):
        images += count
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return images / (clock() - started)


def measure(args: argparse.Namespace) -> dict:
    """The result file's content. UserError where DALI is asked for and missing."""
    if args.clock == "cpu":
        torch.set_num_threads(1)
    device, _ = pick_device("0")
    tune_allocator()  # as runs do
    loaders = {"torchvision reference": reference(args, device)}
    for name in args.loaders.split(","):
        if name not in LOADERS:
            raise UserError(f"--loaders '{name}' must be of {', '.join(LOADERS)}")
        loaders[name] = ours(args, device, LOADERS[name])
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for number in range(args.rounds + 1):
        for name, epoch in loaders.items():
            rate = img_per_s(epoch, number + 1, device, CLOCKS[args.clock])
            if number:
                rates[name].append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    base = medians["torchvision reference"]
    env = environment()
    return {
        "what": f"training loaders, images per {SECOND[args.clock]}, median over rounds",
        "data": f"{args.data_folder.resolve().name}, {args.size} px",
        "batch_size": args.batch_size,
        "workers": args.workers,
        "clock": args.clock,
        "passes_per_round": args.passes,
        "rounds": args.rounds,
        "img_per_s": medians,
        "times_reference": {name: value / base for name, value in medians.items()},
        "all_rounds": rates,
        "env": {k: env[k] for k in ("commit", "dirty", "cpu", "cpu_threads", "gpus", "versions")},
        "cores": usable_cores(),
        "command": f"python scripts/bench/bench_loader.py --data_folder {args.data_folder.resolve().name} "
        f"--size {args.size} --workers {args.workers} --clock {args.clock} --rounds {args.rounds} "
        f"--passes {args.passes} --loaders '{args.loaders}'",
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add("--data_folder", type=Path, required=True, help="folder with train/<class>", metavar="FOLDER")
    add("--size", type=int, default=224, help="side of the images in pixels")
    add("--batch_size", type=int, default=64, help="batch size")
    add("--workers", type=int, default=usable_cores(), help="loader processes (default: one per core)")
    add("--clock", choices=CLOCKS, default="wall", help="wall: elapsed time; cpu: processor time")
    add("--rounds", type=int, default=3, help="timed rounds")
    add("--passes", type=int, default=3, help="over the files, in one round; small sets have short epochs")
    add("--loaders", default="folder,dali cpu", help=f"loaders to time, with commas, of {', '.join(LOADERS)}")
    add("--out", type=Path, help="also write all figures to this file", metavar="FILE")
    args = parser.parse_args(argv)
    result = measure(args)
    for name, rate in result["img_per_s"].items():
        print(f"{name:24s} {rate:8.0f} img/s  {result['times_reference'][name]:.2f}x")
    if args.out:
        atomic_write_json(result, args.out)
    else:
        print(json.dumps(result["all_rounds"]), file=sys.stderr)
    sys.stdout.flush()


if __name__ == "__main__":
    run_script(main)
    os._exit(0)  # the workers need not be waited for
