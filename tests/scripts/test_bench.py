"""scripts/bench/bench.py runs, and its baseline is what it claims to be: the published loop, losses and time."""

import copy
import gc
import itertools
import json
import statistics
import time
from pathlib import Path

import pytest
import torch

from core.protocols import Progress, UserError
from dataset.images.resident import ResidentData, Split
from distiller_zoo import method_dict
from helper import opening
from helper.networks.checkpoint import Checkpoint
from helper.networks.load import Network
from helper.training import optim, stages
from helper.training.step import StepSetup
from models import model_dict
from scripts.bench import bench, bench_worker, measuring
from scripts.bench.usual_way import Projector, UsualStep
from tests.support import reference_loop
from tests.support.commands import squeezed

CPU = torch.device("cpu")


def small_data(images=64):
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, 32, 32, 3), dtype=torch.uint8, generator=rng)
    train = Split(pixels, torch.arange(images) % 10)
    return ResidentData("random", [str(k) for k in range(10)], train, train, flips=True)


def nets(teacher, student, data):
    torch.manual_seed(0)
    return [(model_dict[name], model_dict[name](num_classes=data.num_classes)) for name in (teacher, student)]


def normalised(batch, spec):
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
    return ((batch.inputs["image"] - mean) / std).contiguous(), batch.target


def test_bench_runs_and_reports(commands, tmp_path):
    """The real command on tiny settings: every figure of the report is there, with what it was measured on."""
    out = tmp_path / "bench.json"
    flags = "--pair resnet8:resnet8 --methods simkd --baseline --steps 2 --warmup 1 --rounds 1 --batch_size 8"
    done = commands("scripts/bench/bench.py", *flags.split(), "--images", 128, "--threads", 1, "--json", out)
    assert done.code == 0, done
    report = json.loads(out.read_text())
    assert {"command", "date", "device", "dtype", "pair", "threads", "environment", "rows", "ratios"} <= report.keys()
    assert report["environment"]["versions"]["torch"] and report["environment"]["cpu"]
    ours, usual = report["rows"]
    assert (ours["kind"], usual["kind"]) == ("ours", "baseline") and usual["dtype"] == "fp32"
    for row in (ours, usual):
        assert all(row[k] > 0 for k in ("step_s", "bare_step_s", "loader_s", "img_s", "bare_img_s", "peak_mb"))
        assert row["img_s"] == pytest.approx(8 / row["step_s"])
    hidden = 32  # simkd's projector: 64 -> 32 -> 32 (3x3) -> 64 channels on 8x8 maps, then the classifier
    assert ours["connector_macs"] == 64 * (64 * hidden + 9 * hidden * hidden + hidden * 64) + 64 * 100
    assert ours["step_macs"] > 0 and ours["eval_img_s"] > 0
    assert {r["what"] for r in report["ratios"]} == {"overhead", "speed-up"}
    for r in report["ratios"]:
        assert r["ratio_min"] <= r["ratio"] <= r["ratio_max"] and r["ratio_without_loader"] > 0
    assert "ours simkd" in done.out and "baseline simkd" in done.out


@pytest.fixture
def one_process(monkeypatch):
    """The worker's work without its processes, which would cost seconds each."""

    def start(self, args):
        request = {"kind": self.kind, "method": self.method, "precision": self.dtype, "teacher": args.teacher}
        request |= {"student": args.student, "flags": []}
        request |= {k: getattr(args, k) for k in ("batch_size", "threads", "clock", "gpu_id", "images", "data_folder")}
        self.worker = bench_worker.KINDS[self.kind](request | self.request)

    monkeypatch.setattr(opening, "tune_allocator", opening.tune_allocator)  # the worker may replace it
    monkeypatch.setattr(measuring, "MATRICES", {"cpu": (64,)})
    monkeypatch.setattr(bench_worker, "EVAL_BATCHES", 1)
    for name in ("KEPT_BATCHES", "LOADER_BATCHES", "PROFILED_STEPS"):
        monkeypatch.setattr(measuring, name, 1)
    monkeypatch.setattr(bench.Subject, "start", start)
    sent = {}  # orders that were not answered yet

    def read(self):
        return measuring.respond(self.worker, sent.pop(id(self))) if id(self) in sent else {"dtype": self.worker.dtype}

    monkeypatch.setattr(bench.Subject, "read", read)
    monkeypatch.setattr(bench.Subject, "send", lambda self, **order: sent.update({id(self): order}))
    threads, rng = torch.get_num_threads(), torch.get_rng_state()
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # the first of a process imports torch._dynamo
    gc.collect()
    gc.freeze()  # the benchmark collects after each turn, and need not look at what other tests imported
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(rng)


TINY = "--pair resnet14:resnet8 --steps 1 --warmup 0 --rounds 1 --batch_size 8 --images 64 --threads 1 --precision fp32"


@pytest.mark.slow  # thirteen configurations
def test_parts_of_a_report(one_process, tmp_path, capsys):
    """Floor, halves, switches, cache, lanes and traces in one report; another run adds to it."""
    out = tmp_path / "bench.json"
    switches = "bf16,channels_last,allocator,fold_teacher,reduce_overhead"
    parts = f"--bare --switches {switches} --warm_cache 2 --lanes kd,simkd --floor --together"
    bench.main([*f"{TINY} {parts} --json {out} --profile {tmp_path}".split()])
    report = json.loads(out.read_text())
    rows, gains = {r["label"]: r for r in report["rows"]}, {r["what"]: r for r in report["ratios"]}
    cached = rows["cached kd fp32"]
    assert cached["views_cached"] == 2 * 162 and cached["cache_hit_rate"] == 1.0 and cached["fill_s"] > 0
    assert cached["step_macs"] < rows["ours kd fp32"]["step_macs"]
    assert {"bare teacher fp32", "bare student fp32", "ours kd,simkd fp32", "baseline kd fp32"} <= rows.keys()
    assert {"bare forward and step", "gain of channels_last", "gain of fold_teacher", "gain of lanes"} <= gains.keys()
    assert "gain of reduce_overhead" not in gains, "CUDA graphs without a GPU"
    assert "gain of bf16" not in gains, "float32 beside itself"
    assert gains["gain of allocator"]["slow"] == "ours kd fp32 no allocator"
    assert gains["gain of fold_teacher"]["slow"] == "ours kd fp32 plain"
    assert gains["gain of lanes"]["slow"] == "ours kd fp32 + ours simkd fp32"
    plain = rows["ours kd fp32 plain"]
    assert plain["step_flops"] == 2 * 8 * plain["step_macs"] and plain["matrix_share"] > 0
    assert plain["first_step_s"] > 0 and 0 < plain["eval_share"] < 1
    assert Path(plain["trace"]).stat().st_size > 0 and "traceEvents" in Path(plain["trace"]).read_text()[:100_000]

    bench.main([*f"{TINY} --methods vid,mlkd --overhead --light --json {out} --merge --check".split()])
    both = json.loads(out.read_text())
    assert {"cached kd fp32", "ours vid fp32", "ours mlkd fp32"} <= {r["label"] for r in both["rows"]}
    over = {r["slow"]: r for r in both["ratios"] if r["what"] == "overhead"}
    assert over["ours mlkd fp32"]["more_passes"] == {"student": 2.0, "teacher": 2.0}
    assert over["ours vid fp32"]["more_passes"] == {} and over["ours vid fp32"]["step_macs_ratio"] > 1
    assert any(c["target"].startswith("vid <= 1.6") for c in both["checks"])
    assert "the student reads 2.0 x the images" in capsys.readouterr().out
    bench.main(["--show", str(out), "--markdown"])
    assert "| ours vid fp32 |" in squeezed(capsys.readouterr().out)
    with pytest.raises(UserError, match="batch_size"):
        bench.main([*f"{TINY} --batch_size 16 --bare --json {out} --merge".split()])


def test_students_with_automatic_settings(one_process, tmp_path):
    """Alone, in plain float32, under kd and next to the usual loop, each with the student that is named."""
    out = tmp_path / "bench.json"
    bench.main([*f"{TINY} --students resnet14 --light --json {out}".split()])
    report = json.loads(out.read_text())
    rows = {row["label"]: row for row in report["rows"]}
    alone, plain, kd, usual = (
        f"{kind} fp32 resnet14" for kind in ("ours vanilla", "ours vanilla", "ours kd", "baseline kd")
    )
    plain += " plain"
    assert rows.keys() == {alone, plain, kd, usual}
    assert [(r["what"], r["slow"], r["fast"]) for r in report["ratios"]] == [
        ("automatic settings", plain, alone),
        ("speed-up", usual, kd),
    ]
    forward = rows[kd]["step_macs"] - rows[alone]["step_macs"]  # of the teacher, which is the same network
    assert rows[alone]["step_macs"] == rows[plain]["step_macs"]
    assert 2.9 < rows[alone]["step_macs"] / forward < 3  # backward costs two of them, but for the first layer


def test_a_gpu_has_targets_of_its_own():
    def row(label, step_s):
        kind, method, dtype = label.split()
        return {"label": label, "kind": kind, "method": method, "dtype": dtype, "img_s": 64 / step_s}

    usual, kd, cached = row("baseline kd fp32", 9e-3), row("ours kd bf16", 1e-3), row("cached kd bf16", 0.9e-3)
    rows = [usual | {"peak_mb": 2.0}, kd | {"peak_mb": 1.0, "loader_share": 0.0}, cached]
    ratios = [{"what": "speed-up", "slow": "baseline kd fp32", "fast": "ours kd bf16", "ratio": 9.0}]
    report = {"rows": rows, "ratios": ratios, "dtype": "bf16", "environment": {"cpu": "EPYC"}}
    found = {c["target"]: c for c in bench.checked(report | {"device": "H200"})}
    assert found["kd >= 8.0 x baseline"]["passed"]
    kd_run = found["ours kd, 240 epochs without validation, < 4.0 minutes"]
    assert kd_run["passed"] and kd_run["measured"] == pytest.approx(240 * 50_000 / 64 * 1e-3 / 60)
    assert not found["cached kd, 240 epochs without validation, < 2.0 minutes"]["passed"]
    assert "kd >= 2.0 x baseline" in {c["target"] for c in bench.checked(report | {"device": "EPYC"})}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--methods simkdd", "unknown method 'simkdd'"),
        ("--switches turbo", "--switches turbo are none of"),
        ("--pair resnet8", "--pair 'resnet8' must read TEACHER:STUDENT"),
        ("--pair resnet8:resnet9", "unknown model 'resnet9'"),
        ("--rounds 0", "--rounds 0 must be at least 1"),
        ("--clock cpu --threads 2", "pass --threads 1"),
    ],
)
def test_bench_refuses_what_does_not_fit(flags, words):
    with pytest.raises(UserError, match=words):
        bench.main(flags.split())


@pytest.mark.parametrize("method", ["kd", "simkd"])
def test_baseline_and_our_float32_step_follow_the_literal_loop(method):
    """Three steps on the same batches from the same weights: the same losses."""
    data = small_data()
    (spec_t, teacher), (spec_s, student) = nets("resnet14", "resnet8", data)
    projector = Projector(64, 64) if method == "simkd" else None
    kind = method_dict[method]
    stage = next(
        stages.build_stages(
            kind,
            kind.Config(),
            spec_s,
            Network(spec_t, copy.deepcopy(teacher), Checkpoint(Path("random"), {})),
            data,
            StepSetup(optim.optimizer(optim.OptimConfig(momentum=0.9, weight_decay=0.0005), 0.05), device=CPU),
            stages.StagePlan(batch_size=16, epochs=1),
        )
    )
    stage.step.student.model.load_state_dict(student.state_dict())
    usual = UsualStep(method, copy.deepcopy(student), spec_s, copy.deepcopy(teacher), spec_t, CPU)
    if projector is not None:
        stage.step.method.deployment().transfer.load_state_dict(projector.state_dict())
        usual.projector.load_state_dict(projector.state_dict())
    batches = list(itertools.islice(data.train_loader(16, seed=0, device=CPU), 3))
    plain = [normalised(batch, spec_s) for batch in batches]

    literal, top1, top5 = reference_loop.train(method, student, teacher, projector, plain)
    stage.step.train()
    ours = [float(stage.step(batch, Progress(step=i, steps_per_epoch=3)).loss) for i, batch in enumerate(batches)]
    theirs = [usual(*batch) for batch in plain]
    torch.testing.assert_close(theirs, literal, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours, literal, rtol=1e-5, atol=0)
    assert usual.sums["top1"] / 4800 == pytest.approx(top1) and usual.sums["top5"] / 4800 == pytest.approx(top5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kd", "simkd"])
def test_baseline_costs_what_the_literal_loop_costs(method):
    """Turn and turn about on the same batches; the median of the ratios within 5 % of one."""
    data = small_data()
    (spec_t, teacher), (spec_s, student) = nets("resnet20", "resnet8x4", data)
    projector = Projector(256, 64) if method == "simkd" else None
    usual = UsualStep(method, copy.deepcopy(student), spec_s, copy.deepcopy(teacher), spec_t, CPU)
    loader = data.train_loader(32, seed=0, device=CPU)
    plain = [normalised(batch, spec_s) for batch in itertools.islice(loader, 2)] * 2

    def seconds(work):
        started = time.process_time()  # of the CPU: what else the machine does stays out
        work()
        return time.process_time() - started

    ratios = []
    for _ in range(12):
        literal = seconds(lambda: reference_loop.train(method, student, teacher, projector, plain))
        ratios.append(seconds(lambda: [usual(*batch) for batch in plain]) / literal)
    assert statistics.median(ratios[2:]) == pytest.approx(1, abs=0.05), ratios


def test_checks_of_a_light_report():
    """Without the loader's own time, the speed-up is still held against its target."""
    rows = [{"label": label, "peak_mb": 10.0} for label in ("ours kd bf16", "baseline kd fp32")]
    ratios = [{"what": "speed-up", "slow": "baseline kd fp32", "fast": "ours kd bf16", "ratio": 2.3}]
    found = {c["target"]: c["passed"] for c in bench.checks(rows, ratios, "bf16")}
    assert found == {"kd >= 2.0 x baseline": True, "kd peak memory <= baseline's training process": True}
