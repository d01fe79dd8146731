"""One configuration of bench.py in a process of its own, so that peaks of memory do not mix and turns can alternate.

Reads one JSON request a line and answers with one JSON line: "time" runs a turn, "finish" measures what is measured
once. Between requests it is idle and holds no loader process.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dataset.base import DataOptions, Split
from dataset.cifar import load_cifar100
from dataset.resident import ResidentData
from helper import build
from helper.checkpoint import Checkpoint
from helper.loops import evaluate
from helper.metrics import Meter
from helper.options import parse
from helper.protocols import Batch, Progress
from helper.session import setup
from models import model_dict
from scripts.usual_way import UsualStep, private_memory, usual_loader

KEPT_BATCHES = 4  # that a turn without the loader goes round
LOADER_BATCHES = 20
EVAL_BATCHES = 2


def open_data(request: dict[str, Any]) -> ResidentData:
    """CIFAR-100 from its folder, or random pixels of its shape and number."""
    if request["data_folder"]:
        return load_cifar100(DataOptions(root=Path(request["data_folder"])))
    rng = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        images = torch.randint(256, (count, 32, 32, 3), dtype=torch.uint8, generator=rng)
        return Split(images, torch.arange(count) % 100)

    count = request["images"]
    return ResidentData("random", [str(k) for k in range(100)], split(count), split(max(1, count // 5)), flips=True)


@torch.no_grad()
def random_teacher(name: str, data: ResidentData, device: torch.device) -> build.Network:
    """Random weights, with batch-norm statistics of the data: activations then have the scale of a trained network."""
    spec = model_dict[name]
    torch.manual_seed(0)
    model = spec(num_classes=data.num_classes).to(device)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over batches, of which there is one
    build.TappedNet(model, spec).to(device).train()(next(iter(data.test_loader(64, device=device))).inputs)
    return build.Network(spec, model.eval(), Checkpoint(Path("random"), model.state_dict()))


class Ours:
    """What train_student.py does between two batches: loader, step, meter."""

    def __init__(self, request: dict[str, Any]):
        flags = {
            "distill": request["method"],
            "model_s": request["student"],
            "batch_size": request["batch_size"],
            "precision": request["precision"],
            "gpu_id": request["gpu_id"],
        }
        settings = parse([part for k, v in flags.items() for part in (f"--{k}", str(v))], teacher=False)
        self.device, autocast = setup(settings)
        self.data = open_data(request)
        teacher = random_teacher(request["teacher"], self.data, self.device)
        *_, stage = build.build_stages(
            settings.method,
            settings.config,
            model_dict[settings.model_s],
            teacher if settings.method.teacher_mode == "frozen" else None,
            self.data,
            batch_size=settings.batch_size,
            device=self.device,
            make_optimizer=build.sgd(settings.momentum, settings.weight_decay, settings.learning_rate),
            epochs=1,
            autocast=autocast,
        )
        self.train_step, self.teacher_step = stage.step, stage.step.teacher
        self.train_step.train()
        self.loader = self.data.train_loader(settings.batch_size, seed=0, device=self.device, drop_last=True)
        self.meter = Meter(self.device)
        self.done = 0
        self.dtype = "bf16" if autocast else "fp32"

    def batches(self) -> Iterator[Batch]:
        for epoch in itertools.count(1):
            self.loader.set_epoch(epoch)
            yield from self.loader

    def step(self, batch: Batch) -> None:
        result = self.train_step(batch, Progress(1, 1, self.done, len(self.loader)))
        self.meter.update(result.loss, result.logits, result.target, result.terms, self.done)
        self.done += 1

    def loss(self) -> float:
        return self.meter.read()[0]["loss"]

    def finish(self) -> dict[str, Any]:
        """Arithmetic per image, and the rate of evaluation in float32. The connector is what lies between the networks
        and the loss: `deploy` and `connect`; a whole step also counts the backward pass and the loss."""
        step, batch = self.train_step, next(self.batches())

        def macs(work: Callable[[], object]) -> float:
            with FlopCounterMode(display=False) as counter:
                work()
            return counter.get_total_flops() / 2 / len(batch)

        with torch.no_grad():
            nets = macs(lambda: step.student(batch.inputs))
            if self.teacher_step is not None:
                nets += macs(lambda: self.teacher_step.features(batch, step.taps))
            connector = macs(lambda: step.forward(batch)) - nets
        whole = macs(lambda: self.step(batch))
        deployed = step.deployed().eval()
        loader = self.data.test_loader(500, device=self.device)
        images = min(EVAL_BATCHES * 500, len(self.data.test))
        evaluate(deployed, itertools.islice(loader, 1), self.device)
        started = time.perf_counter()
        evaluate(deployed, itertools.islice(loader, EVAL_BATCHES), self.device)  # reads its result: nothing is pending
        rate = images / (time.perf_counter() - started)
        return {"connector_macs": connector, "step_macs": whole, "eval_img_s": rate}


class Usual:
    """The baseline: its own loader, step and metrics."""

    def __init__(self, request: dict[str, Any]):
        settings = parse(["--gpu_id", request["gpu_id"], "--precision", request["precision"]], teacher=False)
        self.device, autocast = setup(settings)
        data = open_data(request)
        teacher = random_teacher(request["teacher"], data, self.device)
        student = model_dict[request["student"]]
        self.loader = usual_loader(
            data.train_images.contiguous().numpy(),
            data.train_labels.numpy(),
            student,
            request["batch_size"],
            request["threads"],
            self.device.type == "cuda",
        )
        torch.manual_seed(0)
        self.train_step = UsualStep(
            request["method"],
            student(num_classes=data.num_classes),
            student,
            teacher.model,
            teacher.spec,
            self.device,
            autocast,
        )
        self.seen, self.dtype = 0, "bf16" if autocast else "fp32"

    def batches(self) -> Iterator[list[Tensor]]:
        while True:
            yield from self.loader

    def step(self, batch: list[Tensor]) -> None:
        self.train_step(*batch)
        self.seen += len(batch[1])

    def loss(self) -> float:
        return self.train_step.sums["loss"] / self.seen

    def finish(self) -> dict[str, Any]:
        return {}


class Stopwatch:
    """Seconds between marks: the wall clock on a CPU; on a GPU events, read at the end, so that measuring waits for
    nothing."""

    def __init__(self, device: torch.device):
        self.cuda, self.marks = device.type == "cuda", []

    def mark(self) -> None:
        if not self.cuda:
            self.marks.append(time.perf_counter())
            return
        self.marks.append(torch.cuda.Event(enable_timing=True))
        self.marks[-1].record()

    def median(self) -> float:
        pairs = itertools.pairwise(self.marks)
        if not self.cuda:
            return statistics.median(b - a for a, b in pairs)
        torch.cuda.synchronize()
        return statistics.median(a.elapsed_time(b) / 1000 for a, b in pairs)


def timed(
    work: Callable[[Any], object], batches: Iterator[Any], warmup: int, steps: int, device: torch.device
) -> float:
    """Median seconds of fetching a batch and working on it."""
    for _ in range(warmup):
        work(next(batches))
    watch = Stopwatch(device)
    watch.mark()
    for _ in range(steps):
        work(next(batches))
        watch.mark()
    return watch.median()


def peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def turn(subject: Ours | Usual, warmup: int, steps: int) -> dict[str, Any]:
    """Seconds per step with and without the loader, and of the loader alone; memory so far."""
    device, batches = subject.device, subject.batches()
    out: dict[str, Any] = {"step_s": timed(subject.step, batches, warmup, steps, device)}
    children = [p.pid for p in multiprocessing.active_children()]
    out["loader_processes_mb"] = private_memory(children) if children else 0.0
    out["loader_s"] = timed(lambda batch: None, batches, warmup, LOADER_BATCHES, device)
    kept = [next(batches) for _ in range(KEPT_BATCHES)]
    del batches
    gc.collect()  # ends the loader's processes before anything else is timed
    out["bare_step_s"] = timed(subject.step, itertools.cycle(kept), warmup, steps, device)
    out["peak_mb"], out["loss"] = peak_mb(device), subject.loss()
    if not math.isfinite(out["loss"]):
        raise RuntimeError(f"the loss is {out['loss']}: these timings mean nothing")
    return out


def serve(request: dict[str, Any]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not get between the answers

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    torch.set_num_threads(request["threads"])
    subject = (Usual if request["kind"] == "baseline" else Ours)(request)
    answer({"dtype": subject.dtype})
    for line in sys.stdin:
        order = json.loads(line)
        answer(turn(subject, **order["time"]) if "time" in order else subject.finish())
