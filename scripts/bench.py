#!/usr/bin/env python3
"""What a training step costs, per method: python scripts/bench.py --methods all --baseline --json --markdown

Every configuration runs in a process of its own; configurations that are compared take turns (A B A B ...), and every
ratio is taken within a round, so that a machine that slows down slows both. Reported are medians, and the range over
rounds. Data: random images of the shape and number of CIFAR-100, or the real set with --data_folder. Teachers have
random weights: arithmetic does not depend on them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from distiller_zoo import method_dict
from helper import build
from helper.checkpoint import atomic_write_json
from helper.protocols import UserError
from helper.runs import environment
from helper.session import run_script
from models import model_dict
from scripts.bench_worker import serve
from scripts.usual_way import WEIGHTS

REFERENCE = "kd"  # what a method's overhead is measured against
TIMES = ("step_s", "bare_step_s", "loader_s")


@dataclass
class Subject:
    """One configuration: a process that waits for its turn, and what it has answered."""

    kind: str  # "ours" or "baseline"
    method: str
    dtype: str
    turns: list[dict[str, Any]] = field(default_factory=list)
    once: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.kind} {self.method} {self.dtype}"

    def start(self, args: argparse.Namespace) -> None:
        request = {
            "kind": self.kind,
            "method": self.method,
            "precision": self.dtype,
            "teacher": args.teacher,
            "student": args.student,
            **{k: getattr(args, k) for k in ("batch_size", "threads", "gpu_id", "images", "data_folder")},
        }
        env = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
        command = [sys.executable, __file__, "--worker", json.dumps(request)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"the process of '{self.label}' stopped with exit code {self.process.wait()}; see above")
        return json.loads(line)

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return self.read()

    def stop(self) -> None:
        self.process.stdin.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def median(self, key: str) -> float:
        return statistics.median(t[key] for t in self.turns)

    def row(self, batch_size: int) -> dict[str, Any]:
        step = self.median("step_s")
        row = {"label": self.label, "kind": self.kind, "method": self.method, "dtype": self.dtype}
        row |= {key: self.median(key) for key in TIMES}
        row |= {"step_s_min": min(t["step_s"] for t in self.turns), "step_s_max": max(t["step_s"] for t in self.turns)}
        row |= {"img_s": batch_size / step, "bare_img_s": batch_size / row["bare_step_s"]}
        row["loader_share"] = row["loader_s"] / step
        row |= {key: self.turns[-1][key] for key in ("peak_mb", "loader_processes_mb", "loss")}
        return row | self.once | {"turns": self.turns}


def ratio(slow: Subject, fast: Subject, what: str) -> dict[str, Any]:
    """How many times longer `slow` takes, per round; median and range."""
    out: dict[str, Any] = {"what": what, "slow": slow.label, "fast": fast.label}
    for key, name in (("step_s", "ratio"), ("bare_step_s", "ratio_without_loader")):
        rounds = [a[key] / b[key] for a, b in zip(slow.turns, fast.turns, strict=True)]
        out |= {name: statistics.median(rounds), f"{name}_min": min(rounds), f"{name}_max": max(rounds)}
    return out


def take_turns(subjects: Sequence[Subject], args: argparse.Namespace) -> None:
    """Fill `turns` and `once` of every subject."""
    try:
        for subject in subjects:
            subject.start(args)
        for subject in subjects:
            subject.read()
        for number in range(args.rounds):
            for subject in subjects:
                subject.turns.append(subject.ask({"time": {"warmup": args.warmup, "steps": args.steps}}))
                milliseconds = subject.turns[-1]["step_s"] * 1e3
                print(f"round {number + 1}/{args.rounds}  {subject.label:22s} {milliseconds:9.1f} ms", file=sys.stderr)
        for subject in subjects:
            subject.once = subject.ask({"finish": {}})
    finally:
        for subject in subjects:
            if hasattr(subject, "process"):
                subject.stop()


def measure(method: str, args: argparse.Namespace, dtype: str) -> tuple[list[Subject], list[dict[str, Any]]]:
    """A method beside kd and, where there is one, the baseline: the subjects to report, and their ratios."""
    ours = Subject("ours", method, dtype)
    kd = ours if method == REFERENCE else Subject("ours", REFERENCE, dtype)
    pairs: list[tuple[Subject, Subject, str]] = [] if kd is ours else [(ours, kd, "overhead")]
    own = [ours]
    if args.baseline and method in WEIGHTS:
        usual = Subject("baseline", method, "fp32")
        pairs.append((usual, ours, "speed-up"))
        own.append(usual)
        if args.equal_precision and dtype == "bf16":
            ours_fp32, usual_bf16 = Subject("ours", method, "fp32"), Subject("baseline", method, "bf16")
            pairs += [
                (usual, ours_fp32, "speed-up at equal precision"),
                (usual_bf16, ours, "speed-up at equal precision"),
            ]
            own += [ours_fp32, usual_bf16]
    take_turns(own if kd is ours else [kd, *own], args)
    ratios = [ratio(*pair) for pair in pairs]
    if kd is not ours:
        ratios[0]["step_macs_ratio"] = ours.once["step_macs"] / kd.once["step_macs"]
    return own, ratios


def checks(rows: Sequence[dict[str, Any]], ratios: Sequence[dict[str, Any]], dtype: str) -> list[dict[str, Any]]:
    """The targets, each with what was measured."""
    row = {r["label"]: r for r in rows}
    seen = {(r["slow"], r["fast"]): r["ratio"] for r in ratios}
    ours, usual = f"ours {{}} {dtype}", "baseline {} fp32"
    out = []
    for method in WEIGHTS:
        mine, theirs = ours.format(method), usual.format(method)
        out.append((f"{method} >= 2.0 x baseline", seen[theirs, mine], seen[theirs, mine] >= 2.0))
        memory = row[mine]["peak_mb"] / row[theirs]["peak_mb"]
        out.append((f"{method} peak memory <= baseline's training process", memory, memory <= 1.0))
        share = row[mine]["loader_share"]
        out.append((f"{method} loader < 2 % of the step", share, share < 0.02))
    crd = seen[ours.format("crd"), ours.format("kd")]
    out.append(("crd <= 1.3 x kd", crd, crd <= 1.3))
    return [{"target": target, "measured": value, "passed": passed} for target, value, passed in out]


HEADER = (
    "configuration", "ms/step", "range", "img/s", "without loader", "loader ms (share)", "peak MB (+ loader processes)",
    "time / kd", "MACs / kd", "connector MMACs/img", "eval img/s",
)  # fmt: skip


def table(report: dict[str, Any]) -> list[tuple[str, ...]]:
    overhead = {r["slow"]: r for r in report["ratios"] if r["what"] == "overhead"}
    lines = [HEADER]
    for r in report["rows"]:
        over, helpers = overhead.get(r["label"]), r["loader_processes_mb"]
        lines.append(
            (
                r["label"],
                f"{r['step_s'] * 1e3:.1f}",
                f"{r['step_s_min'] * 1e3:.1f} to {r['step_s_max'] * 1e3:.1f}",
                f"{r['img_s']:.1f}",
                f"{r['bare_img_s']:.1f}",
                f"{r['loader_s'] * 1e3:.2f} ({r['loader_share']:.2%})",
                f"{r['peak_mb']:.0f}" + (f" (+ {helpers:.0f})" if helpers else ""),
                f"{over['ratio']:.3f}" if over else "",
                f"{over['step_macs_ratio']:.3f}" if over else "",
                f"{r['connector_macs'] / 1e6:.2f}" if "connector_macs" in r else "",
                f"{r['eval_img_s']:.0f}" if "eval_img_s" in r else "",
            )
        )
    return lines


def show(report: dict[str, Any], markdown: bool) -> None:
    machine = report["environment"]
    print(
        f"{report['pair']}, batch {report['batch_size']}, {report['data']}, on {report['device']} "
        f"({report['threads']} threads), torch {machine['versions']['torch']}, {report['date']}: {report['command']}"
    )
    lines = table(report)
    if markdown:
        lines.insert(1, ("---",) * len(HEADER))
        print("", *("| " + " | ".join(line) + " |" for line in lines), "", sep="\n")
    else:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
    for r in report["ratios"]:
        print(
            f"{'- ' * markdown}{r['what']}: {r['slow']} takes {r['ratio']:.2f} x the time of {r['fast']} "
            f"({r['ratio_min']:.2f} to {r['ratio_max']:.2f}); {r['ratio_without_loader']:.2f} x without the loaders"
        )
    for c in report["checks"]:
        print(f"{'- ' * markdown}{'PASS' if c['passed'] else 'FAIL'} {c['target']}: {c['measured']:.3f}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    add = parser.add_argument
    add("--pair", default="resnet32x4:resnet8x4", metavar="TEACHER:STUDENT")
    add("--batch_size", type=int, default=64)
    add("--methods", default="kd,simkd,crd", help="comma-separated, or all")
    add("--steps", type=int, default=10, help="timed steps a turn")
    add("--warmup", type=int, default=2, help="steps before them, every turn")
    add("--rounds", type=int, default=5, help="turns of every configuration")
    add("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    add("--baseline", action="store_true", help=f"also train {' and '.join(WEIGHTS)} the usual way, in float32")
    add("--equal_precision", action="store_true", help="also ours in float32 and the baseline under bf16 autocast")
    add("--threads", type=int, default=cores, help="of every process, and loader processes of the baseline")
    add("--gpu_id", default="0")
    add("--images", type=int, default=50_000, help="random training images, where no --data_folder is given")
    add("--data_folder", default=None, help="where the real CIFAR-100 lies")
    add("--json", nargs="?", const="", help="write all figures; without FILE to results/bench_<device>_<dtype>.json")
    add("--markdown", action="store_true", help="print the table as markdown")
    add("--check", action="store_true", help="PASS or FAIL per target; implies --baseline and the methods it needs")
    add("--worker", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def plan(args: argparse.Namespace) -> list[str]:
    """The methods to measure; UserError for names and numbers that do not fit."""
    teacher, colon, student = args.pair.partition(":")
    if not colon:
        raise UserError(f"--pair '{args.pair}' must read TEACHER:STUDENT, such as resnet32x4:resnet8x4")
    args.teacher, args.student = model_dict.resolve(teacher), model_dict.resolve(student)
    for name in ("batch_size", "steps", "rounds", "threads", "images"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)} must be at least 1")
    methods = list(method_dict) if args.methods == "all" else [method_dict.resolve(m) for m in args.methods.split(",")]
    if args.check:
        args.baseline = True
        methods = [*WEIGHTS, "crd", *methods]
    return list(dict.fromkeys(methods))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.worker:
        serve(json.loads(args.worker))
        return
    methods = plan(args)
    device, notice = build.pick_device(args.gpu_id)
    if notice:
        print(notice, file=sys.stderr)
    dtype = "bf16" if build.pick_autocast(args.precision, device) else "fp32"
    torch.set_num_threads(args.threads)
    measured = [measure(method, args, dtype) for method in methods]
    rows = [subject.row(args.batch_size) for subjects, _ in measured for subject in subjects]
    ratios = [r for _, rs in measured for r in rs]
    machine = environment()
    report = {
        "command": shlex.join(["python", "scripts/bench.py", *(sys.argv[1:] if argv is None else argv)]),
        "date": datetime.date.today().isoformat(),
        "device": machine["gpus"][device.index] if device.type == "cuda" else machine["cpu"],
        "dtype": dtype,
        "data": f"{args.data_folder and 'CIFAR-100' or f'{args.images} random images'}, 100 classes",
        **{k: getattr(args, k) for k in ("pair", "batch_size", "threads", "steps", "warmup", "rounds")},
        "environment": machine,
        "rows": rows,
        "ratios": ratios,
        "checks": checks(rows, ratios, dtype) if args.check else [],
    }
    show(report, args.markdown)
    if args.json is not None:
        slug = re.sub(r"[^a-z0-9]+", "_", report["device"].lower()).strip("_")
        path = Path(args.json or f"results/bench_{slug}_{dtype}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(report, path)
        print(f"written to {path}")


if __name__ == "__main__":
    run_script(main)
