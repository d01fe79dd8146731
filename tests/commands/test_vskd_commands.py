"""Vision teaches a wrist from the command line: every method on a pair, single files, export, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from core.protocols import Batch, DataSet, UserError
from dataset.recordings.utd_mhad import CLASSES
from distiller_zoo import method_dict
from helper.deploy.export import onnx_session
from helper.deploy.predictor import open_predictor
from helper.deploy.student import load_student
from models import model_dict
from scripts.export_onnx import exported
from scripts.vskd.extra_trees import statistics_of
from tests.support.cases import mostly
from tests.support.contract import PROGRESS, check_contract, make_step
from tests.support.recordings import utd
from tests.support.run_folders import rows_of
from tests.support.toys import network

SIZES = ("--image_size", 32, "--window", 32, "--num_segments", 2, "--clip_cache", "clips")
QUICK = ("--batch_size", 6, "--epochs", 1, "--lr_decay_epochs", 1, "--precision", "fp32", "--dataset", "utd_mhad")
SHAPES = {"video": (2, 3, 32, 32), "sensor": (3, 32)}


class Pairs(DataSet):
    """Clips and windows of noise, side by side."""

    name, num_classes, shapes = "pairs", 5, SHAPES
    train_labels = torch.arange(24) % 5

    def batch(self, size=8, seed=0):
        g = torch.Generator().manual_seed(seed)
        index = torch.randperm(24, generator=g)[:size]
        inputs = {k: torch.rand(size, *shape, generator=g) for k, shape in SHAPES.items()}
        return Batch(inputs, self.train_labels[index], index)

    def shuffled(self, batching, device):
        raise AssertionError("pairs hand out batches")

    def test_loader(self, *args, **kwargs):
        raise AssertionError("no test loader here")


def teacher():
    return network(model_dict["trn:resnet8"].fitted(SHAPES), 5)


SETTINGS = {"crd": {"nce_k": 8, "feat_dim": 4}, "cc": {"feat_dim": 4}, "ldrld": {"top": 3}}
REFUSED = {  # what this pair cannot give: a linear classifier behind the last map, equal widths, an image
    "deit": "sensor_cnn has none",
    "fcfd": "choose two with the same number",
    "srrl": "feeds the classifier of trn:resnet8",
    "simkd": "reuses the classifier of trn:resnet8",
    "cat_kd": "applies the classifier of sensor_cnn to its last map",
    "ab": "must be twice as large as its partner",
    "fsp": "needs maps of equal width",
    "kdsvd": "needs maps of equal width",
    "mlkd": "use --mlkd_views 1",
    "crld": "crld augments images",
    "sdd": "applies the classifier of sensor_cnn to its last map",
    "wkd_l": "compares the rows of a linear classifier",
    "wkd_f": "leaves cells of one pixel",
}


def pair_step(name, **settings):
    method, data = method_dict[name], Pairs()
    student = model_dict["sensor_cnn"].fitted(SHAPES)
    cfg = method.Config(**SETTINGS.get(name, {}), **settings)
    return make_step(method, cfg, student, teacher, data, 8), data


# of networks of their own: tests/distiller_zoo: test_losses_hsakd.py, test_cakd.py
ELSEWHERE = {"vanilla", "cakd", "hsakd_teacher", "hsakd", "hsakd_online", "dpcd_teacher", "dpcd"}


@pytest.mark.parametrize("name", mostly([n for n in method_dict if n not in {*ELSEWHERE, *REFUSED}] + ["mlkd-views"]))
def test_every_method_works_on_the_pair(name):
    """The teacher sees the clip, the student the window of the same performance, and alone at test time."""
    step, data = pair_step("mlkd", views=1) if name == "mlkd-views" else pair_step(name)
    step.train()
    before = step.student.model.stem[0].weight.detach().clone()
    results = [step(data.batch(seed=i), PROGRESS) for i in range(2)]
    assert all(torch.isfinite(v) for r in results for v in (r.loss, *r.terms.values()))
    assert not torch.equal(step.student.model.stem[0].weight, before)
    with torch.no_grad():
        out = step.deployed().eval()({"sensor": data.batch().inputs["sensor"]})
    assert out["student"].shape == (8, 5)


@pytest.mark.parametrize("name", REFUSED)
def test_methods_that_cannot_say_why(name):
    with pytest.raises(UserError, match=REFUSED[name]):
        pair_step(name)


@pytest.mark.parametrize("student", ["sensor_cnn", "sensor_transformer", "resnet18_gaf"])
def test_contract_of_dask_on_the_pair(student):
    """Nothing but the student moves, all of it does, and a state dict restores it."""
    method, data, spec = method_dict["dask"], Pairs(), model_dict[student].fitted(SHAPES)
    cfg = method.Config(semantic=0.5)
    check_contract(lambda: make_step(method, cfg, spec, teacher, data, 8), data.batch(), 5)


# ---- the commands


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return utd(tmp_path_factory.mktemp("utd"))


@pytest.fixture(scope="module")
def home(commands, tmp_path_factory, root):
    """Where a teacher of the clips was trained, and with it a student of the accelerometer."""
    home = tmp_path_factory.mktemp("vskd")
    common = (*QUICK, *SIZES, "--data_folder", root)
    done = commands("train_teacher.py", *common, "--modality", "video", "--model", "trn:resnet8", cwd=home).finished()
    assert "12 recordings to train on, 12 to test; cross-subject (1, 3, 5, 7 against 2, 4, 6, 8), video" in done.out
    assert "decoded frames of 24 clips, 36 px:" in done.out and "MiB in 'clips'" in done.out
    (path,) = home.glob("save/teachers/models/*/trn:resnet8_best.pth")
    pair = ("--modality_t", "video", "--modality_s", "accel", "--path_t", path)
    commands(
        "train_student.py", *common, *pair, "--distill", "dask,vanilla", "--model_s", "sensor_cnn", cwd=home
    ).finished()
    return home


@pytest.fixture(scope="module")
def student(home):
    (path,) = home.glob("save/students/models/*_dask_*/sensor_cnn_best.pth")
    return path


def test_runs_say_what_they_read(home, student):
    rows = rows_of(student.parent)
    assert {"train_cls", "train_div", "train_dask", "test_acc"} <= rows[-1].keys()
    done = json.loads((student.parent / "parameters.json").read_text())
    assert done["evaluated_on"] == "cross-subject (1, 3, 5, 7 against 2, 4, 6, 8), accel+video"
    assert done["arch_t"] == "trn:resnet8" and done["teacher_acc"] is not None
    identity = json.loads((student.parent / "args.json").read_text())["identity"]
    assert (identity["modality_s"], identity["modality_t"], identity["window"]) == ("accel", "video", 32)


def test_a_recording_is_named_without_any_data_set(commands, student, root, tmp_path):
    """Sensor values alone: neither data folder nor video is there."""
    file = shutil.copy(root / "Inertial" / "a2_s2_t1_inertial.mat", tmp_path)
    done = commands("test_model.py", "--path", student, "--file", file, cwd=tmp_path).finished()
    lines = done.out.strip().splitlines()
    assert len(lines) == 3 and all(line.split("  ")[0] in CLASSES for line in lines)
    (found,) = open_predictor(student)([Path(file)], 27)
    assert lines[0].startswith(found.top[0][0])
    assert sum(p for _, p in found.top) == pytest.approx(1, abs=1e-5)


def test_evaluating_a_checkpoint_takes_its_own_settings(commands, home, student, root):
    given = ("--dataset", "utd_mhad", "--data_folder", root)
    done = commands("test_model.py", "--path", student, *given, cwd=home).finished()
    assert "12 samples, fp32" in done.out and "recorded in the file" in done.out and "warning" not in done.out
    (path,) = home.glob("save/teachers/models/*/trn:resnet8_best.pth")
    done = commands("test_model.py", "--path", path, *given, "--clip_cache", "clips", cwd=home).finished()
    assert "12 samples, fp32" in done.out and "warning" not in done.out


def test_refusals(commands, home, student, root, teacher):
    (path,) = home.glob("save/teachers/models/*/trn:resnet8_best.pth")
    inertial = root / "Inertial" / "a1_s1_t1_inertial.mat"
    commands("test_model.py", "--path", path, "--file", inertial).refused(
        "a1_s1_t1_inertial.mat", "is it a file of another kind?"
    )
    commands("test_model.py", "--path", student, "--file", "none.mat").refused("there is no file 'none.mat'")
    commands("test_model.py", "--path", student, "--file", inertial, "--rank", 1).refused("leave --rank out")
    commands("test_model.py", "--path", teacher, "--file", inertial).refused("a1_s1_t1_inertial.mat", "not an image")
    common = (*QUICK, *SIZES, "--data_folder", root)
    commands("train_teacher.py", *common, "--model", "trn:resnet8", cwd=home).refused(
        "trn:resnet8 reads 'video', but the data set has sensor"
    )
    pair = ("--modality_t", "video", "--modality_s", "accel", "--model_s", "sensor_cnn", "--path_t", path)
    commands("train_student.py", *common, *pair, "--num_segments", 3, "--dry_run", cwd=home).refused(
        "it was trained on video of 2x3x32x32, not 3x3x32x32: give the --num_segments of its training"
    )


def test_flags_of_recordings_are_named_where_they_do_nothing(commands, tmp_path):
    done = commands.teacher("--epochs", 1, "--max_steps", 1, "--window", 50, "--modality", "accel", cwd=tmp_path)
    assert "--window (digits holds no action recordings)" in done.finished().out


# ---- export


@pytest.mark.slow  # the export command below writes a sensor's network, helper/test_export.py a transformer
@pytest.mark.parametrize("name", ["resnet18_gaf", "sensor_transformer"])
def test_the_graph_computes_what_the_network_does(name, tmp_path, quick_export):
    """Any batch size, the Gramian field inside: sensor values in, logits out."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs onnx, onnxscript and onnxruntime, of requirements-extra.txt")
    spec = model_dict[name].fitted({"sensor": (3, 32)})
    torch.manual_seed(0)
    model = spec(num_classes=27)
    path = tmp_path / "student.pth"
    meta = {"arch": name, "classes": list(CLASSES), "modalities": {"sensor": "accel"}, "shapes": {"sensor": [3, 32]}}
    torch.save({"model": model.state_dict(), "meta": meta}, path)
    target, row = exported(load_student(path), tmp_path, repetitions=2)
    session = onnx_session(target)
    assert [i.name for i in session.get_inputs()] == ["input"] and session.get_inputs()[0].shape[1:] == [3, 32]
    assert session.get_modelmeta().custom_metadata_map["classes"].splitlines() == list(CLASSES)
    for size in (1, 3):
        x = 4 * torch.randn(size, 3, 32)
        x[0, 1] = 1.5  # an axis at rest
        (logits,) = session.run(None, {"input": x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), model.eval()(x), rtol=1e-3, atol=1e-4)
    assert row["parameters (M)"] == sum(p.numel() for p in model.parameters()) / 1e6
    assert row["file (MB)"] > 3.9 * row["parameters (M)"] and row["MACs (M)"] > 0
    assert row["torch (ms)"] > 0 and row["onnxruntime (ms)"] > 0


def test_the_export_command(commands, student, root, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs onnx, onnxscript and onnxruntime, of requirements-extra.txt")
    inertial = root / "Inertial" / "a2_s2_t1_inertial.mat"
    done = commands(
        "scripts/export_onnx.py", "--path", student, "--file", inertial, "--report", "cost.md", "--repetitions", 2,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    named = done.out.splitlines()[0].removeprefix("a2_s2_t1_inertial.mat: ")
    assert named == next(open_predictor(student)([inertial], 1)).top[0][0]
    assert "| sensor_cnn | accel 3x32 |" in (tmp_path / "cost.md").read_text()


def test_the_report_of_a_study(commands, home, root):
    """Table with the trees in it, confusion matrices and costs, from the run folders."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs onnx, onnxscript and onnxruntime, of requirements-extra.txt")
    flags = ("--root", "save", "--data_folder", root, "--clip_cache", "clips", "--network", "sensor_cnn")
    few = {"scripts.vskd.extra_trees.TREES": 20}
    done = commands("scripts/vskd/report.py", *flags, "--out", "out/v1.0", cwd=home, set=few)
    assert done.code == 0, done.err
    berkeley = ("--berkeley_root", home / "nothing", "--berkeley_folder", root)
    for more, words in ((berkeley[:2], "belong together"), (berkeley, "no finished run on berkeley_mhad below")):
        commands("scripts/vskd/report.py", *flags, "--out", "out/again", *more, cwd=home, set=few).refused(words)
    text = (home / "out" / "v1.0_utd_mhad_short.md").read_text()
    rows = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if line.startswith("| ")]
    assert rows == ["method", "teacher", "student alone", "dask", "ExtraTrees, 20 trees on accel statistics"]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
    trees = dict(zip(cells[0], cells[-1], strict=True))
    assert trees["runs"] == "3" and trees["gain"] == "" and "±" in trees["last epoch"]
    assert float(trees["x chance"]) == pytest.approx(27 * float(trees["last epoch"].split()[0]) / 100, abs=0.06)
    assert "cross-subject (1, 3, 5, 7 against 2, 4, 6, 8)" in text
    assert (home / "out" / "v1.0_utd_mhad_short_confusion.png").read_bytes().startswith(b"\x89PNG")
    cost = (home / "out" / "v1.0_utd_mhad_short_cost.md").read_text()
    assert "| sensor_cnn" in cost and "| trn:resnet8" in cost and "video 2x3x32x32" in cost


def test_trees_see_statistics():
    values = np.arange(24.0).reshape(2, 12)
    row = statistics_of(values)
    assert row.shape == (5 * 4 * 2,)
    assert row[:8].tolist() == pytest.approx([5.5, 17.5, *2 * [np.std(np.arange(12))], 0, 12, 11, 23])
    assert row[8:10].tolist() == [1.0, 13.0]  # means of the first quarter


def test_a_missing_package_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="needs the package onnxruntime: pip install onnxruntime"):
        onnx_session(Path("x.onnx"))
