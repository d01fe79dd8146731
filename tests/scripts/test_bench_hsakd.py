"""scripts/bench/bench_hsakd.py: its baseline computes what our float32 step computes, and the command reports it."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from core.protocols import Progress, UserError
from distiller_zoo import method_dict
from helper import opening
from helper.training import optim, stages
from helper.training.step import StepSetup
from models import model_dict
from scripts.bench import bench_hsakd, bench_worker, measuring
from scripts.bench.usual_hsakd import UsualDPCD, UsualHSAKD
from tests.support.commands import squeezed
from tests.support.toys import ToyData, network

ROOT = Path(__file__).resolve().parents[2]
STEPS = [("usual", "fp32"), ("ours", "fp32"), ("ours", "bf16")]


@pytest.mark.parametrize(("method", "usual", "end"), [("hsakd", UsualHSAKD, ""), ("dpcd", UsualDPCD, "_dpcd")])
def test_baseline_and_our_step_lose_alike(method, usual, end):
    """Three steps on the same batches from the same weights."""
    spec, data = model_dict[f"resnet8_aux{end}"], ToyData(image=(3, 16, 16), num_classes=5)
    torch.manual_seed(0)
    student, teacher = spec(num_classes=5), network(spec)
    kind = method_dict[method]
    options = {"as_published": True} if method == "dpcd" else {}

    (stage,) = stages.build_stages(
        kind,
        kind.Config(**options),
        spec,
        teacher,
        data,
        StepSetup(
            optim.optimizer(optim.OptimConfig(optimizer="nesterov", momentum=0.9, weight_decay=0.0005), 0.05),
            device=torch.device("cpu"),
        ),
        stages.StagePlan(batch_size=8, epochs=240),
    )
    stage.step.student.model.load_state_dict(student.state_dict())
    step = usual(method, student, spec, copy.deepcopy(teacher.model), spec, torch.device("cpu"))
    stage.step.train()
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
    for i in range(3):
        batch = data.batch(seed=i)
        ours = stage.step(batch, Progress(61, 240, i, 3)).loss.item()
        theirs = step((batch.inputs["image"] - mean) / std, batch.target)
        assert ours == pytest.approx(theirs, rel=2e-4), i


def test_targets_and_verdicts():
    """The published step has none; a CUDA device has its own."""
    targets = [bench_hsakd.target_of("hsakd", *s, on_gpu=g) for g in (False, True) for s in STEPS]
    assert targets == [None, 1.05, 1.8, None, None, 2.5]
    assert all(bench_hsakd.target_of(*subject, on_gpu=False) for subject in bench_hsakd.SUBJECTS if "ours" in subject)
    row = {"step": "ours", "speed_up": 2.0, "peak_mb": 9.0, "usual_peak_mb": 8.0}
    assert [bench_hsakd.verdicts(row | {"target": t}) for t in (1.8, 2.5, None)] == [
        ("1.8 PASS", "FAIL"), ("2.5 FAIL", "FAIL"), ("", "FAIL"),
    ]  # fmt: skip
    assert bench_hsakd.verdicts(row | {"target": None, "step": "usual"}) == ("", "")
    with pytest.raises(UserError, match="pass --threads 1"):
        bench_hsakd.main(["--clock", "cpu", "--threads", "2"])


@pytest.mark.parametrize("kind", ["ours", "usual"])
def test_a_process_of_the_benchmark(kind, monkeypatch):
    monkeypatch.setattr(opening, "tune_allocator", lambda: None)  # it would outlive the test
    request = bench_hsakd.request_of("dpcd", kind, "fp32", images=4)
    step = bench_worker.kept(request | {"gpu_id": "0", "batch_size": 2, "threads": 0}, 2)
    answer = measuring.respond(step, {"time": {"warmup": 0, "steps": 1, "light": True, "floor": False}})
    assert answer["step_s"] > 0 and answer["peak_mb"] > 0


@pytest.mark.slow  # three processes; the quick test above is one of them
def test_the_benchmark_runs(tmp_path):
    argv = ["--methods", "dpcd", "--rounds", "1", "--steps", "1", "--batch_size", "2", "--threads", "1"]
    out = [tmp_path / "bench.json", tmp_path / "bench.md"]
    command = [sys.executable, "scripts/bench/bench_hsakd.py", *argv, "--json", str(out[0]), "--markdown", str(out[1])]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out[0].read_text())["rows"]
    assert [(r["step"], r["dtype"]) for r in rows] == STEPS
    assert all(r["step_s"] > 0 and r["peak_mb"] > 0 and r["speed_up"] > 0 for r in rows)
    assert rows[0]["speed_up"] == 1 and "| dpcd | ours | bf16 |" in squeezed(out[1].read_text())
