#!/usr/bin/env python3
"""Cost of CAKD compared with plain KD: python scripts/bench/bench_cakd.py --student ResNet50 ResNet18 --markdown FILE

A training step at 224 px (random images, a ViT teacher with random weights; arithmetic depends on neither) of kd and of
both variants. Every configuration is a process of its own; they take turns, and ratios are taken within a round.
Reported: medians, the range over rounds, multiply-accumulates of a whole step, peak memory. Limits: 1.25 for `code`
and for ResNet18, 1.55 for `paper` on ResNet50.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import atomic_write_json, atomic_write_text
from core.protocols import Batch, Progress, UserError
from helper.machine.devices import pick_device
from helper.machine.program import run_script
from helper.networks.checkpoint import Checkpoint
from helper.networks.load import Network
from helper.opening import setup
from helper.options.parse import parse
from helper.runs.folder import environment
from helper.training import optim, stages
from helper.training.step import StepSetup
from models import model_dict

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


@dataclass
class Photos:
    """As much of a data set as building a step asks for: random images on the device."""

    size: int
    name: str = "random"
    num_classes: int = CLASSES
    train_labels: Tensor = field(default_factory=lambda: torch.arange(4 * CLASSES) % CLASSES)
    full_batches: bool = False

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"image": (3, self.size, self.size)}

    def batch(self, count: int, device: torch.device) -> Batch:
        rng = torch.Generator(device).manual_seed(0)
        images = torch.rand(count, 3, self.size, self.size, generator=rng, device=device)
        target = torch.randint(CLASSES, (count,), generator=rng, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        return Batch({"image": images}, target, torch.arange(count, device=device))


def serve(request: dict[str, Any]) -> None:
    """The process of one configuration: a line of JSON in, a line out."""
    torch.set_num_threads(request["threads"])
    clock = time.process_time if request["clock"] == "cpu" else time.perf_counter
    argv = ["--gpu_id", request["gpu_id"], "--model_s", request["student"], "--precision", request["precision"]]
    settings = parse([*argv, "--distill", *KINDS[request["kind"]]], teacher=False)
    device, autocast = setup(settings)
    data, spec_t = Photos(request["size"]), model_dict[request["teacher"]]
    torch.manual_seed(0)
    model = spec_t(num_classes=CLASSES)
    teacher = Network(spec_t, model, Checkpoint(Path("random"), model.state_dict()))
    *_, stage = stages.build_stages(
        settings.method,
        settings.config,
        model_dict[request["student"]],
        teacher,
        data,
        StepSetup(
            optim.optimizer(optim.OptimConfig(momentum=0.9, weight_decay=0.0001), 0.001),
            device=device,
            autocast=autocast,
        ),
        stages.StagePlan(batch_size=request["batch_size"], epochs=120),
    )
    step, batch, done = stage.step, data.batch(request["batch_size"], device), 0
    step.train()

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def steps(count: int) -> list[float]:
        nonlocal done
        seconds = []
        for _ in range(count):
            wait()
            started = clock()
            step(batch, Progress(EPOCH, 120, done, 10**6))
            wait()
            seconds.append(clock() - started)
            done += 1
        return seconds

    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if order == "macs":
            done = 0  # a step with an update of the discriminator
            # kernels that do several multiplications at once are unknown to the counter
            torch.backends.mha.set_fastpath_enabled(False)
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                steps(1)
            answer: Any = counter.get_total_flops() / 2 / request["batch_size"]
        else:
            steps(1)
            seconds = steps(order)  # the discriminator's fifth step is in it once per five
            on_gpu = device.type == "cuda"
            peak = (
                torch.cuda.max_memory_allocated()
                if on_gpu
                else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            )
            answer = {"step_s": statistics.mean(seconds), "peak_mb": peak / 2**20}
            answer["dtype"] = "bf16" if autocast else "fp32"
        print(json.dumps(answer), flush=True)


class Subject:
    def __init__(self, kind: str, student: str, args: argparse.Namespace):
        self.kind, self.student, self.turns = kind, student, []
        keys = ("teacher", "batch_size", "size", "threads", "clock", "gpu_id", "precision")
        request = {"kind": kind, "student": student} | {k: getattr(args, k) for k in keys}
        command = [sys.executable, __file__, "--worker", json.dumps(request)]
        env = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def ask(self, order: Any = None) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        if order is not None:
            print(json.dumps(order), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"the process of {self.kind} on {self.student} stopped with code {self.process.wait()}")
        return json.loads(line)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def measure(student: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    subjects = [Subject(kind, student, args) for kind in KINDS]
    try:
        for subject in subjects:
            subject.ask()
        for _ in range(args.rounds):
            for subject in subjects:
                subject.turns.append(subject.ask(args.steps))
        macs = [subject.ask("macs") for subject in subjects]
    finally:
        for subject in subjects:
            subject.stop()
    kd, rows = subjects[0], []
    for subject, arithmetic in zip(subjects, macs, strict=True):
        ratios = [a["step_s"] / b["step_s"] for a, b in zip(subject.turns, kd.turns, strict=True)]
        rows.append(
            {
                "student": student,
                "kind": subject.kind,
                "step_s": statistics.median(t["step_s"] for t in subject.turns),
                "time_ratio": statistics.median(ratios),
                "time_ratio_min": min(ratios),
                "time_ratio_max": max(ratios),
                "macs": arithmetic,
                "macs_ratio": arithmetic / macs[0],
                "peak_mb": max(t["peak_mb"] for t in subject.turns),
                "limit": None if subject is kd else limit(subject.kind, student),
                "dtype": subject.turns[0]["dtype"],
            }
        )
    return rows


HEADER = ("student", "step", "s/step", "time / kd", "range", "GMACs/image", "MACs / kd", "peak MB", "limit")


def line(row: dict[str, Any]) -> tuple[str, ...]:
    verdict = (
        "" if row["limit"] is None else f"{row['limit']} {'PASS' if row['time_ratio'] <= row['limit'] else 'FAIL'}"
    )
    return (
        row["student"],
        row["kind"],
        f"{row['step_s']:.3f}",
        f"{row['time_ratio']:.3f}",
        f"{row['time_ratio_min']:.3f} to {row['time_ratio_max']:.3f}",
        f"{row['macs'] / 1e9:.2f}",
        f"{row['macs_ratio']:.3f}",
        f"{row['peak_mb']:.0f}",
        verdict,
    )


def page(report: dict[str, Any]) -> list[str]:
    """Lines of Markdown."""
    rows, r = [HEADER, ("---",) * len(HEADER), *map(line, report["rows"])], report
    return [
        f"`{r['command']}`",
        "",
        f"{r['teacher']} teaches, {r['size']} px, batch {r['batch_size']}, {r['rows'][0]['dtype']}, {r['device']}, "
        f"{r['threads']} thread(s), {r['clock']} clock, torch {r['environment']['versions']['torch']}, {r['date']}; "
        f"median of {r['rounds']} rounds of {r['steps']} steps, the discriminator's among them. MACs and memory of a "
        "whole step.",
        "",
        *("| " + " | ".join(cells) + " |" for cells in rows),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--student", nargs="+", default=["ResNet50", "ResNet18"])
    add("--teacher", default="torchvision:vit_b_16")
    add("--batch_size", type=int, default=8)
    add("--size", type=int, default=224, help="side of the images")
    add(
        "--steps",
        type=int,
        default=5,
        help="timed steps a turn; a multiple of five holds the paper's discriminator once",
    )
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=os.cpu_count())
    add("--clock", choices=("wall", "cpu"), default="wall", help="cpu: seconds of the processor, with --threads 1")
    add("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    add("--gpu_id", default="0", metavar="GPUS")
    add("--json", help="write all figures here", metavar="FILE")
    add("--markdown", help="write the table here", metavar="FILE")
    add("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        serve(json.loads(args.worker))
        return
    for name in ("batch_size", "steps", "rounds", "size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)} must be at least 1")
    if args.clock == "cpu" and (args.threads > 1 or pick_device(args.gpu_id)[0].type == "cuda"):
        raise UserError(
            "--clock cpu adds the seconds of all threads, including waiting ones: pass --threads 1, on a CPU"
        )
    rows = [row for student in args.student for row in measure(model_dict.resolve(student), args)]
    machine = environment()
    report = {
        "command": shlex.join(["python", "scripts/bench/bench_cakd.py", *(sys.argv[1:] if argv is None else argv)]),
        "date": datetime.date.today().isoformat(),
        "device": machine["gpus"][0] if machine["gpus"] else machine["cpu"],
        **{k: getattr(args, k) for k in ("teacher", "batch_size", "size", "threads", "clock", "steps", "rounds")},
        "environment": machine,
        "rows": rows,
    }
    text = "\n".join(page(report))
    print(text)
    if args.markdown:
        atomic_write_text(args.markdown, f"# A step of CAKD next to one of plain KD\n\n{text}\n")
    if args.json:
        atomic_write_json(report, args.json)


if __name__ == "__main__":
    run_script(main)
