"""scripts/bench/bench_cakd.py: limits and verdicts, and the command itself on small networks."""

import json
import os
import subprocess
import sys

import pytest
import torch

from core.protocols import UserError
from helper import opening
from scripts.bench import bench_cakd, measuring
from tests.support.commands import ROOT, squeezed


def test_limits_and_verdicts():
    row = {"student": "ResNet50", "kind": "cakd paper", "step_s": 2.0, "time_ratio": 1.5, "peak_mb": 9.0}
    row |= {"time_ratio_min": 1.4, "time_ratio_max": 1.6, "macs": 3e9, "macs_ratio": 1.43}
    verdicts = {}
    for student, kind in (("ResNet50", "cakd paper"), ("ResNet50", "cakd code"), ("ResNet18", "cakd paper")):
        verdicts[student, kind] = bench_cakd.line(row | {"limit": bench_cakd.limit(kind, student)})[-1]
    assert list(verdicts.values()) == ["1.55 PASS", "1.25 FAIL", "1.25 FAIL"]
    assert bench_cakd.line(row | {"limit": None})[-1] == ""
    with pytest.raises(UserError, match="pass --threads 1"):
        bench_cakd.main(["--clock", "cpu", "--threads", "2"])
    with pytest.raises(UserError, match="--steps 0 must be at least 1"):
        bench_cakd.main(["--steps", "0"])


SMALL = {"student": "resnet8", "teacher": "vit_micro_cifar", "batch_size": 2}


def test_a_process_of_the_benchmark(monkeypatch):
    monkeypatch.setattr(opening, "tune_allocator", lambda: None)  # these two would outlive the test
    monkeypatch.setattr(torch.backends.mha, "set_fastpath_enabled", lambda enabled: None)
    method, *flags = bench_cakd.KINDS["cakd paper"]
    request = SMALL | {"gpu_id": "0", "precision": "fp32", "method": method, "flags": flags}
    step = bench_cakd.Step(request | {"images": 10, "side": 32, "classes": 20, "epoch": 60, "epochs": 120})
    turn = measuring.respond(step, {"time": {"warmup": 0, "steps": 1, "light": True, "floor": False}})
    assert turn["step_s"] > 0 and turn["peak_mb"] > 0 and step.dtype == "fp32"
    assert measuring.respond(step, {"finish": {"evaluation": False}})["step_macs"] > 0


@pytest.mark.slow  # three processes; the quick test above is one of them
def test_the_benchmark_runs(tmp_path):
    argv = [word for flag, value in SMALL.items() for word in (f"--{flag}", str(value))]
    argv += ["--size", "32", "--clock", "cpu", "--rounds", "1", "--steps", "1", "--threads", "1"]
    out = [tmp_path / "bench.json", tmp_path / "bench.md"]
    command = [sys.executable, "scripts/bench/bench_cakd.py", *argv, "--json", str(out[0]), "--markdown", str(out[1])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    report = json.loads(out[0].read_text())
    assert [r["kind"] for r in report["rows"]] == ["kd", "cakd paper", "cakd code"] and report["clock"] == "cpu"
    assert report["rows"][0]["time_ratio"] == report["rows"][0]["macs_ratio"] == 1
    assert all(r["step_s"] > 0 and r["macs"] > 0 and r["peak_mb"] > 0 for r in report["rows"])
    assert "| resnet8 | cakd code |" in squeezed(out[1].read_text())
