#!/usr/bin/env python3
"""Time of a step of HSAKD and DPCD: python scripts/bench/bench_hsakd.py --json FILE --markdown FILE

Ours against a literal transcription of the published step (usual_hsakd.py), WRN-40-2 teaching WRN-16-2, in bf16 and in
float32, on a CPU or a CUDA device. Every configuration has its own process, they take turns, and ratios are computed
within a round, without loaders. Random pixels of CIFAR-100's shape, random weights: arithmetic does not depend
on them. Targets: TARGETS on a CPU, GPU_TARGETS on a CUDA device.
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
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import atomic_write_json, atomic_write_text
from core.protocols import Batch, Progress, UserError
from distiller_zoo import method_dict
from helper.evaluation.metrics import Meter
from helper.machine.devices import pick_device
from helper.machine.program import run_script
from helper.networks.checkpoint import Checkpoint
from helper.networks.load import Network
from helper.runs.folder import environment
from helper.training import optim, stages
from helper.training.step import StepSetup
from models import model_dict
from scripts.bench.usual_hsakd import UsualDPCD, UsualHSAKD

CLASSES, KEPT = 100, 2


NETWORKS = {"hsakd": ("wrn_40_2_aux", "wrn_16_2_aux"), "dpcd": ("wrn_40_2_aux_dpcd", "wrn_16_2_aux_dpcd")}


SUBJECTS = [
    *(
        (method, kind, dtype)
        for method in NETWORKS
        for kind, dtype in (("usual", "fp32"), ("ours", "fp32"), ("ours", "bf16"))
    )
]


TARGETS = {("hsakd", "fp32"): 1.05, ("hsakd", "bf16"): 1.8, ("dpcd", "fp32"): 1.3, ("dpcd", "bf16"): 1.3}


GPU_TARGETS = {("hsakd", "bf16"): 2.5}


class Data:
    """As much of a data set as building a step takes."""

    name, num_classes, shapes = "random", CLASSES, {"image": (3, 32, 32)}
    train_labels = torch.arange(1000) % CLASSES
    full_batches = False


def step_of(method: str, kind: str, dtype: str, batch_size: int, device: torch.device) -> Any:
    """A function that trains one step; its batches go round, and lie on the device."""
    (teacher, student), rng = NETWORKS[method], torch.Generator().manual_seed(0)
    torch.backends.cudnn.benchmark = True  # in the published code as in ours
    spec_t, spec_s = model_dict[teacher], model_dict[student]
    torch.manual_seed(0)
    model_t = spec_t(num_classes=CLASSES).eval()
    pixels = [torch.rand(batch_size, 3, 32, 32, generator=rng).to(device) for _ in range(KEPT)]
    target = torch.randint(CLASSES, (KEPT, batch_size), generator=rng).to(device)
    if kind == "usual":
        torch.backends.cudnn.allow_tf32 = (
            True  # torch's default, which published code leaves alone and pick_device() not
        )
        kind_of_step = {"hsakd": UsualHSAKD, "dpcd": UsualDPCD}[method]
        usual = kind_of_step(spec_s(num_classes=CLASSES).to(device), model_t.to(device), spec_s.branches)
        mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (spec_s.mean, spec_s.std))
        normal = [(x - mean) / std for x in pixels]
        return lambda i: usual(normal[i % KEPT], target[i % KEPT])
    distiller = method_dict[method]
    network = Network(spec_t, model_t, Checkpoint(Path("random"), {}))
    (stage,) = stages.build_stages(
        distiller,
        distiller.Config(),
        spec_s,
        network,
        Data(),
        StepSetup(
            optim.optimizer(optim.OptimConfig(optimizer="nesterov", momentum=0.9, weight_decay=0.0005), 0.05),
            device=device,
            autocast=torch.bfloat16 if dtype == "bf16" else None,
        ),
        stages.StagePlan(batch_size=batch_size, epochs=240),
    )
    stage.step.train()
    meter, index = Meter(device), torch.arange(batch_size, device=device)
    inputs = [x.contiguous(memory_format=torch.channels_last) for x in pixels]

    def step(i: int) -> None:
        batch = Batch({"image": inputs[i % KEPT]}, target[i % KEPT], index)
        result = stage.step(batch, Progress(61, 240, i, 1000))
        meter.update(result.loss, result.logits, result.target, result.terms, i)

    return step


def worker(method: str, kind: str, dtype: str, args: argparse.Namespace) -> None:
    """A line on standard input is a turn of so many steps; answers with the median of their seconds."""
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    device, _ = pick_device(args.gpu_id)
    on_gpu = device.type == "cuda"
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    step, done = step_of(method, kind, dtype, args.batch_size, device), 0
    for line in sys.stdin:
        seconds = []
        for i in range(int(line) + 1):  # the first warms up
            wait()
            started = clock()
            step(done + i)
            wait()
            seconds.append(clock() - started)
        done += len(seconds)
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        peak = torch.cuda.max_memory_allocated(device) if on_gpu else rss
        print(json.dumps({"step_s": statistics.median(seconds[1:]), "peak_mb": peak / 2**20}), flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: seconds of the processor, with --threads 1"
    )
    parser.add_argument("--gpu_id", default="0", help="without CUDA, the CPU", metavar="GPUS")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--markdown", metavar="FILE")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        return worker(*args.worker, args)
    for name in ("rounds", "steps", "batch_size", "threads"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)} must be at least 1")
    on_gpu = pick_device(args.gpu_id)[0].type == "cuda"
    if args.clock == "cpu" and (args.threads > 1 or on_gpu):
        raise UserError(
            "--clock cpu adds the seconds of all threads, including waiting ones: pass --threads 1, on a CPU"
        )
    subjects = [s for s in SUBJECTS if s[0] in args.methods]
    flags = [f"--{name}={getattr(args, name)}" for name in ("batch_size", "threads", "clock", "gpu_id")]
    command = [sys.executable, __file__, *flags, "--worker"]
    env = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": env}
    processes = {s: subprocess.Popen([*command, *s], **pipes) for s in subjects}  # type: ignore[call-overload]
    turns: dict[Any, list[dict[str, float]]] = {s: [] for s in subjects}
    try:
        for _ in range(args.rounds):
            for subject, process in processes.items():
                print(args.steps, file=process.stdin, flush=True)
                turns[subject].append(json.loads(process.stdout.readline()))
    finally:
        for process in processes.values():
            process.stdin.close()
            process.wait()
    report(args, subjects, turns, on_gpu)


def verdicts(row: dict[str, Any]) -> str:
    """Cells: speed against its target if it has one, memory against the usual step's."""
    if row["step"] == "usual":
        return " | "
    passed = [row["target"] is not None and row["speed_up"] >= row["target"], row["peak_mb"] <= row["usual_peak_mb"]]
    speed, memory = ("PASS" if good else "FAIL" for good in passed)
    return f" | {memory}" if row["target"] is None else f"{row['target']} {speed} | {memory}"


def target_of(method: str, kind: str, dtype: str, on_gpu: bool) -> float | None:
    return None if kind == "usual" else (GPU_TARGETS if on_gpu else TARGETS).get((method, dtype))


def report(
    args: argparse.Namespace, subjects: list[Any], turns: dict[Any, list[dict[str, float]]], on_gpu: bool
) -> None:
    environ, rows = environment(), []
    machine = torch.cuda.get_device_name(pick_device(args.gpu_id)[0]) if on_gpu else environ["cpu"]
    tf32 = ", TF32 in convolutions, as torch has it by default" if on_gpu else ""
    for subject in subjects:
        method, kind, dtype = subject
        usual = turns[method, "usual", "fp32"]
        ratios = [u["step_s"] / mine["step_s"] for u, mine in zip(usual, turns[subject], strict=True)]
        rows.append(
            {
                "method": method,
                "step": kind,
                "dtype": dtype,
                "step_s": statistics.median(t["step_s"] for t in turns[subject]),
                "peak_mb": turns[subject][-1]["peak_mb"],
                "speed_up": statistics.median(ratios),
                "speed_up_min": min(ratios),
                "speed_up_max": max(ratios),
                "target": target_of(*subject, on_gpu),
                "usual_peak_mb": usual[-1]["peak_mb"],
            }
        )
    lines = [
        f"`{shlex.join(['python', 'scripts/bench/bench_hsakd.py', *sys.argv[1:]])}`",
        "",
        f"{machine}, {args.threads} thread(s), {args.clock} clock, batch {args.batch_size}, "
        f"torch {environ['versions']['torch']}, {datetime.date.today()}, "
        f"median of {args.rounds} rounds of {args.steps} steps; the usual step is a literal "
        f"transcription of the published one, in float32{tf32}. Targets are of speed, and memory no "
        "higher than the usual step's.",
        "",
        "| method | step | | seconds | peak MB | times the usual speed | speed | memory |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {r['method']} | {r['step']} | {r['dtype']} | {r['step_s']:.3f} | {r['peak_mb']:.0f} | "
            f"{r['speed_up']:.2f} ({r['speed_up_min']:.2f} to {r['speed_up_max']:.2f}) | {verdicts(r)} |"
            for r in rows
        ),
    ]
    print("\n".join(lines))
    if args.markdown:
        atomic_write_text(args.markdown, "# A step of HSAKD and of DPCD\n\n" + "\n".join(lines) + "\n")
    if args.json:
        atomic_write_json({"command": sys.argv, "rows": rows, "environment": environ}, args.json)


if __name__ == "__main__":
    run_script(main)
