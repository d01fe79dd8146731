#!/usr/bin/env python3
"""Time of a step of HSAKD and DPCD: python scripts/bench/bench_hsakd.py --json FILE --markdown FILE

Ours against a literal transcription of the published step (usual_hsakd.py), WRN-40-2 teaching WRN-16-2, in bf16 and in
float32, on a CPU or a CUDA device. Every configuration has its own process, they take turns, and ratios are computed
within a round, without loaders. Random pixels of CIFAR-100's shape, random weights: arithmetic does not depend
on them. Targets: TARGETS on a CPU, GPU_TARGETS on a CUDA device.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import atomic_write_json
from core.protocols import Progress
from distiller_zoo import method_dict
from helper.evaluation.metrics import Meter
from helper.machine.devices import pick_device
from helper.machine.program import run_script
from helper.training import optim, stages
from helper.training.step import StepSetup
from models import model_dict
from scripts.bench import measuring
from scripts.bench.measuring import RandomImages, Subject, random_network, spread, step_of, take_turns
from scripts.bench.usual_hsakd import UsualDPCD, UsualHSAKD

CLASSES, KEPT = 100, 2
NETWORKS = {"hsakd": ("wrn_40_2_aux", "wrn_16_2_aux"), "dpcd": ("wrn_40_2_aux_dpcd", "wrn_16_2_aux_dpcd")}
SUBJECTS = [
    (method, kind, dtype)
    for method in NETWORKS
    for kind, dtype in (("usual", "fp32"), ("ours", "fp32"), ("ours", "bf16"))
]
TARGETS = {("hsakd", "fp32"): 1.05, ("hsakd", "bf16"): 1.8, ("dpcd", "fp32"): 1.3, ("dpcd", "bf16"): 1.3}
GPU_TARGETS = {("hsakd", "bf16"): 2.5}


class Step:
    """The subject of one process; its batches go round, and lie on the device."""

    def __init__(self, request: dict[str, Any]):
        method, kind, self.dtype, size = (request[k] for k in ("method", "kind", "dtype", "batch_size"))
        self.device, _ = pick_device(request["gpu_id"])
        torch.backends.cudnn.benchmark = True  # in the published code as in ours
        spec_t, spec_s = (model_dict[name] for name in NETWORKS[method])
        teacher, data = random_network(spec_t, CLASSES), RandomImages(CLASSES, 32)
        self.kept: list[Any] = data.batches(KEPT, size, self.device)
        self.done, self.meter, self.usual = 0, Meter(self.device), None
        if kind == "usual":
            # torch's default, which published code leaves alone and pick_device() does not
            torch.backends.cudnn.allow_tf32 = True
            usual, student = {"hsakd": UsualHSAKD, "dpcd": UsualDPCD}[method], spec_s(num_classes=CLASSES)
            self.usual = usual(student.to(self.device), teacher.model.to(self.device).eval(), spec_s.branches)
            mean, std = (torch.tensor(v, device=self.device).view(1, -1, 1, 1) for v in (spec_s.mean, spec_s.std))
            self.kept = [(((b.inputs["image"] - mean) / std).contiguous(), b.target) for b in self.kept]
            return
        make = optim.optimizer(optim.OptimConfig(optimizer="nesterov", momentum=0.9, weight_decay=0.0005), 0.05)
        setup = StepSetup(make, self.device, torch.bfloat16 if self.dtype == "bf16" else None)
        plan, distiller = stages.StagePlan(batch_size=size, epochs=240), method_dict[method]
        self.train = step_of(distiller, distiller.Config(), spec_s, teacher, data, setup, plan)

    def batches(self) -> Iterator[Any]:
        return itertools.cycle(self.kept)

    def step(self, batch: Any) -> None:
        if self.usual is not None:
            self.last = self.usual(*batch)
            return
        result = self.train(batch, Progress(61, 240, self.done, 1000))
        self.meter.update(result.loss, result.logits, result.target, result.terms, self.done)
        self.last, self.done = result.loss, self.done + 1

    def loss(self) -> float:
        return float(self.last)

    def finish(self, evaluation: bool) -> dict[str, float]:
        return {}


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
        names: Subject(__file__, " ".join(names), dict(zip(("method", "kind", "dtype"), names, strict=True)))
        for names in SUBJECTS
        if names[0] in args.methods
    }
    take_turns(list(subjects.values()), args)
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    measuring.add_turns(parser, batch_size=64, steps=3, rounds=3)
    measuring.add_files(parser)
    args = parser.parse_args(argv)
    if args.worker:
        return measuring.serve(args.worker, Step)
    measuring.refuse_clock(args)
    device, _ = pick_device(args.gpu_id)
    on_gpu = device.type == "cuda"
    report = measuring.report(__file__, argv, device, measure(args, on_gpu))
    tf32 = ", TF32 in convolutions, as torch has it by default" if on_gpu else ""
    lines = [
        f"`{report['command']}`",
        "",
        f"{report['device']}, {args.threads} thread(s), {args.clock} clock, batch {args.batch_size}, "
        f"torch {report['environment']['versions']['torch']}, {report['date']}, "
        f"median of {args.rounds} rounds of {args.steps} steps; the usual step is a literal "
        f"transcription of the published one, in float32{tf32}. Targets are of speed, and memory no "
        "higher than the usual step's.",
        "",
        *measuring.table(HEADER, map(line, report["rows"])),
    ]
    measuring.publish("A step of HSAKD and of DPCD", lines, args.markdown)
    if args.json:
        atomic_write_json(report, args.json)


if __name__ == "__main__":
    run_script(main)
