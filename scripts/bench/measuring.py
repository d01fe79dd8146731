"""What the benchmarks share: configurations in processes of their own that take turns, clocks, ratios, pages.

A benchmark's process (`--worker REQUEST`) calls serve(); its subject has `device`, `dtype`, `batches()`, `step(batch)`,
`loss()`, `average(seconds)` and `finish(evaluation)`. The process that compares them calls compare():
configurations alternate (A B A B ...), and every ratio is computed within a round, so that a slow phase of the machine
affects both.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import itertools
import json
import math
import multiprocessing
import os
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from core.files import atomic_save
from core.machine import usable_cores
from core.option import whole
from core.protocols import ModelSpec, UserError
from helper.machine.devices import pick_device
from helper.networks.checkpoint import Checkpoint
from helper.networks.load import Network
from helper.runs.folder import environment
from helper.tables import writers
from helper.training import stages
from helper.training.step import DistillStep

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
THREAD_CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}
clock = CLOCKS["wall"]  # that of --clock, set by serve()
KEPT_BATCHES = 4  # that a turn without the loader goes round
LOADER_BATCHES = 20
MATRICES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}  # sizes whose products measure the machine's rate
PROFILED_STEPS = 3


class Subject:
    """One configuration: a process that waits for its turn, and what it has answered.

    script: the benchmark, which serves `request` with --worker. once: what is measured once.
    """

    def __init__(self, script: str, label: str, request: Mapping[str, Any]):
        self.script, self.label, self.request = script, label, request
        self.dtype = ""  # of the forward pass, as its process says
        self.turns: list[dict[str, Any]] = []
        self.once: dict[str, Any] = {}

    def start(self, args: argparse.Namespace) -> None:
        shared = {k: getattr(args, k) for k in ("batch_size", "threads", "clock", "gpu_id")}
        command = [sys.executable, self.script, "--worker", json.dumps(shared | dict(self.request))]
        env = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def send(self, **order: dict[str, Any]) -> None:
        print(json.dumps(order), file=self.process.stdin, flush=True)

    def read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"the process of '{self.label}' stopped with exit code {self.process.wait()}; see above")
        return json.loads(line)

    def ask(self, **order: dict[str, Any]) -> dict[str, Any]:
        self.send(**order)
        return self.read()

    def take_turn(self, args: argparse.Namespace, round_number: int) -> None:
        self.turns.append(self.ask(time={k: getattr(args, k) for k in ("warmup", "steps", "light", "floor")}))
        milliseconds = self.turns[-1]["step_s"] * 1e3
        print(f"round {round_number}/{args.rounds}  {self.label:32s} {milliseconds:9.1f} ms", file=sys.stderr)

    def finish(self, args: argparse.Namespace) -> None:
        self.once |= self.ask(finish={"evaluation": not args.light})

    def stop(self) -> None:
        if not hasattr(self, "process"):
            return
        self.process.stdin.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def median(self, key: str) -> float:
        return statistics.median(t[key] for t in self.turns)

    def over(self, other: Subject) -> list[float]:
        """How many times longer a step takes than one of the other, in every round."""
        return [mine["step_s"] / theirs["step_s"] for mine, theirs in zip(self.turns, other.turns, strict=True)]


@contextlib.contextmanager
def running(subjects: Sequence[Subject], args: argparse.Namespace) -> Iterator[None]:
    """Inside the context, the processes wait for their turns; it fills `dtype` and `once` of every subject."""
    try:
        for subject in subjects:
            subject.start(args)
        for subject in subjects:
            subject.dtype = subject.read()["dtype"]
        if args.together:  # the first steps, compilation included, at the same time
            for subject in subjects:
                subject.send(first={})
        for subject in subjects:
            subject.once = subject.read() if args.together else subject.ask(first={})
        yield
        for subject in subjects:
            subject.finish(args)
    finally:
        for subject in subjects:
            subject.stop()


def take_turns(subjects: Sequence[Subject], args: argparse.Namespace) -> None:
    """Fill `turns` of subjects that are running()."""
    for number in range(args.rounds):
        for subject in subjects:
            subject.take_turn(args, number + 1)


def compare(subjects: Sequence[Subject], args: argparse.Namespace) -> None:
    """Start the subjects, let them take turns, and end them."""
    with running(subjects, args):
        take_turns(subjects, args)


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Median and range over rounds."""
    return {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


class Stopwatch:
    """Seconds between marks: by the clock on a CPU; on a GPU events, read at the end, so that measuring waits for
    nothing."""

    def __init__(self, device: torch.device):
        self.cuda, self.marks = device.type == "cuda", []

    def mark(self) -> None:
        if not self.cuda:
            self.marks.append(clock())
            return
        self.marks.append(torch.cuda.Event(enable_timing=True))
        self.marks[-1].record()

    def seconds(self) -> list[float]:
        pairs = itertools.pairwise(self.marks)
        if not self.cuda:
            return [b - a for a, b in pairs]
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1000 for a, b in pairs]


def timed(
    work: Callable[[Any], object], batches: Iterator[Any], warmup: int, steps: int, device: torch.device
) -> list[float]:
    """Seconds of fetching a batch and working on it, of every step."""
    for _ in range(warmup):
        work(next(batches))
    watch = Stopwatch(device)
    watch.mark()
    for _ in range(steps):
        work(next(batches))
        watch.mark()
    return watch.seconds()


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of square matrix products in this precision, the best of three sizes: what the machine gives now."""
    rates = []
    for size in MATRICES[device.type]:
        a, b = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
        seconds = timed(lambda x, a=a: a @ x, itertools.repeat(b), 1, 3, device)
        rates.append(2 * size**3 / statistics.median(seconds))
    return max(rates)


def peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def turn(subject: Any, warmup: int, steps: int, light: bool, floor: bool) -> dict[str, Any]:
    """Seconds per step with and without the loader, and of the loader alone; memory so far.

    light: the step with its loader and nothing else. floor: also the machine's rate of matrix products, next to it.
    """
    device, batches = subject.device, subject.batches()
    out: dict[str, Any] = {"step_s": subject.average(timed(subject.step, batches, warmup, steps, device))}
    if not light:
        workers = [psutil.Process(p.pid) for p in multiprocessing.active_children()]
        out["loader_processes_mb"] = sum(w.memory_full_info().uss for w in workers) / 2**20  # theirs alone
        out["loader_s"] = subject.average(timed(lambda batch: None, batches, warmup, LOADER_BATCHES, device))
        kept = [next(batches) for _ in range(KEPT_BATCHES)]
        del batches
        gc.collect()  # ends the loader's processes before anything else is timed
        out["bare_step_s"] = subject.average(timed(subject.step, itertools.cycle(kept), warmup, steps, device))
    if floor:
        out["matrix_flops"] = matrix_rate(device, torch.bfloat16 if subject.dtype == "bf16" else torch.float32)
    out["peak_mb"], out["loss"] = peak_mb(device), subject.loss()
    if not math.isfinite(out["loss"]):
        raise RuntimeError(f"the loss is {out['loss']}, so the timings are not valid")
    return out


def first_step(subject: Any) -> dict[str, Any]:
    """Seconds of the first step, compilation included."""
    batch = next(subject.batches())
    started = clock()
    subject.step(batch)
    subject.loss()  # waits for the device
    return {"first_step_s": clock() - started}


def profiled(subject: Any, path: str) -> dict[str, Any]:
    """Write a trace of a few steps that chrome://tracing and perfetto read."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if subject.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    batches = subject.batches()
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(PROFILED_STEPS):
            subject.step(next(batches))
    profile.export_chrome_trace(path)
    return {"trace": path}


def respond(subject: Any, order: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The answer to one order: a name (first, time, profile, finish) and its arguments."""
    ((name, arguments),) = order.items()
    if name == "finish":
        return subject.finish(**arguments)
    return {"first": first_step, "time": turn, "profile": profiled}[name](subject, **arguments)


def serve(text: str, build: Callable[[dict[str, Any]], Any]) -> None:
    """A subject's process: a line of JSON in, a line out; idle in between. text: the request. build: the subject."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not get between the answers

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    global clock
    request = json.loads(text)
    torch.set_num_threads(request["threads"])
    clock = CLOCKS[request["clock"]]
    subject = build(request)
    answer({"dtype": subject.dtype})
    for line in sys.stdin:
        answer(respond(subject, json.loads(line)))


def add_turns(parser: argparse.ArgumentParser, batch_size: int, steps: int, rounds: int) -> None:
    """The flags of all benchmarks whose configurations are processes that take turns."""
    add = parser.add_argument
    add("--batch_size", **whole(1), default=batch_size, help=f"batch size (default {batch_size})")
    add("--steps", **whole(1), default=steps, help=f"timed steps per turn (default {steps})")
    add("--rounds", **whole(1), default=rounds, help=f"turns of every configuration (default {rounds})")
    add("--threads", **whole(1), default=usable_cores(), help="threads of every process (default: one per core)")
    add("--clock", choices=CLOCKS, default="wall", help="wall: elapsed time; cpu: processor time, with --threads 1")
    add("--gpu_id", default="0", help="GPU to use (default 0; without CUDA the CPU)", metavar="GPUS")
    add("--worker", help=argparse.SUPPRESS)


def add_files(parser: argparse.ArgumentParser) -> None:
    """The flags of benchmarks that print a page; one turn is a step's time and nothing else."""
    parser.add_argument("--json", help="write all figures to this file", metavar="FILE")
    parser.add_argument("--markdown", help="write the table to this file", metavar="FILE")
    parser.set_defaults(warmup=1, light=True, floor=False, together=False)


def refuse_clock(args: argparse.Namespace) -> None:
    if args.clock == "cpu" and (args.threads > 1 or pick_device(args.gpu_id)[0].type == "cuda"):
        raise UserError(
            "--clock cpu adds the seconds of all threads, including waiting ones: pass --threads 1, on a CPU"
        )


def command_of(script: str, argv: Sequence[str] | None) -> str:
    return shlex.join(["python", f"scripts/bench/{Path(script).name}", *(sys.argv[1:] if argv is None else argv)])


def report(
    script: str, argv: Sequence[str] | None, device: torch.device, rows: Sequence[Mapping[str, Any]], **facts: Any
) -> dict[str, Any]:
    """The content of a result file."""
    machine = environment()
    return {
        "command": command_of(script, argv),
        "date": datetime.date.today().isoformat(),
        "device": machine["gpus"][device.index or 0] if device.type == "cuda" else machine["cpu"],
        **facts,
        "environment": machine,
        "rows": rows,
    }


def verdict(value: float, limit: float | None, at_most: bool = True) -> str:
    """A cell: the limit, and whether it is kept."""
    if limit is None:
        return ""
    return f"{limit} {'PASS' if (value <= limit if at_most else value >= limit) else 'FAIL'}"


def conditions(report: Mapping[str, Any], args: argparse.Namespace) -> str:
    """Of a measurement with add_turns()'s flags."""
    return (
        f"{report['device']}, {args.threads} thread(s), {args.clock} clock, batch {args.batch_size}, torch "
        f"{report['environment']['versions']['torch']}, {report['date']}, median of {args.rounds} rounds of "
        f"{args.steps} steps"
    )


def publish(title: str, report: Mapping[str, Any], parts: Sequence[str], path: str | Path | None) -> None:
    """Print a page, and write it to a file, if one is named. parts: paragraphs and tables."""
    whole = (f"# {title}", f"`{report['command']}`", *parts)
    writers.publish("\n\n".join(part.rstrip() for part in whole), path)


def random_network(spec: ModelSpec, num_classes: int, path: Path | None = None) -> Network:
    """path: where its weights are also written, for what reads the checksum of a teacher's file."""
    torch.manual_seed(0)
    model = spec(num_classes=num_classes)
    state: dict[str, Tensor] = model.state_dict()
    if path is not None:
        atomic_save(state, path)
    return Network(spec, model, Checkpoint(path or Path("random"), state))


def step_of(*what: Any) -> DistillStep:
    """The step of a method's last stage, in training mode. what: the arguments of build_stages()."""
    *_, stage = stages.build_stages(*what)
    stage.step.train()
    return stage.step
