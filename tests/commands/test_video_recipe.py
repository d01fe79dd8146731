"""The published video recipes: DIST on clips and on frames, the teacher's dropout, optimiser groups, clipping, the
start from image weights, and the tools around checkpoints; end to end on clips made here."""

import dataclasses
import json
import pickle
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from core.protocols import UserError
from distiller_zoo import method_dict
from distiller_zoo._combined import Combined, CombinedConfig
from distiller_zoo._math import kl
from helper.networks.load import started_from
from helper.networks.teacher_sources import LiveTeacher, keep_dropout
from helper.training.optim import OptimConfig, regroup, tsm_multipliers
from helper.training.schedule import ScheduleConfig, make_schedule
from models import model_dict
from models._video_keys import to_openmmlab
from tests.golden.rule import rand
from tests.models.test_temporal import VideoToy
from tests.support.contract import PROGRESS, check_contract, make_step
from tests.support.toys import network

Z_S = [[1, 2, 3], [0, -1, 1], [2, 0, -2], [0.5, 0.5, 0]]
Z_T = [[1, 1, 4], [1, -2, 0], [3, 0, -1], [0, 1, 0]]


@pytest.mark.parametrize(
    ("tau", "inter", "intra"), [(1, 0.365845, 0.214712), (2, 1.220128, 0.728966), (4, 4.431984, 2.706551)]
)
def test_golden_dist(tau, inter, intra):
    s, t = (torch.tensor(z, dtype=torch.float64) for z in (Z_S, Z_T))
    cls = method_dict["dist"]

    def loss(**weights):
        method = cls(cls.Config(tau=tau, **weights), None)
        return method.terms({"logits": s}, {"logits": t}, None, PROGRESS)["dist"].item()

    assert loss(intra=0.0) == pytest.approx(inter, abs=1e-6)
    assert loss(inter=0.0) == pytest.approx(intra, abs=1e-6)
    assert loss() == pytest.approx(inter + intra, abs=2e-6)


def test_golden_kl():
    s, t = (torch.tensor(z, dtype=torch.float64) for z in (Z_S, Z_T))
    assert kl(s, t, 1.0).item() == pytest.approx(0.191327, abs=1e-6)
    assert kl(s, t, 4.0).item() == pytest.approx(0.254539, abs=1e-6)


def pair(cfg_name, *, student="tsm:resnet8", teacher="tsm:resnet14", **settings):
    data, cls = VideoToy(), method_dict[cfg_name]
    cfg = cls.Config(**settings)

    def make():
        torch.manual_seed(1)
        other = network(model_dict[teacher].fitted(data.shapes))
        return make_step(cls, cfg, model_dict[student].fitted(data.shapes), lambda: other, data, 8)

    return make, data


@pytest.mark.parametrize("frame_logits", [False, True])
def test_dist_on_clips_or_on_frames(frame_logits):
    """The published TSM recipe compares 8 T rows of scores, the TSN recipe 8."""
    make, data = pair("dist", tau=1.0, beta=1.0, frame_logits=frame_logits)
    step, batch = make(), data.batch()
    step.trained.eval()
    s, t = step.objective.features(batch)
    terms = step.objective.main_terms(s, t, batch, PROGRESS, step.method.weights(PROGRESS))
    name = "frame_logits" if frame_logits else "logits"
    assert len(s[name]) == (8 * data.shapes["video"][0] if frame_logits else 8)
    p_s, p_t = s[name].softmax(1), t[name].softmax(1)

    def rho(a, b):
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)).mean()

    want = 2 - rho(p_s, p_t) - rho(p_s.T, p_t.T)
    torch.testing.assert_close(terms["dist"], want)
    torch.testing.assert_close(terms["cls"], F.cross_entropy(s["logits"], batch.target))


def test_kl_and_labelled_losses_on_frames():
    """Every logit method: the labels of a clip are those of its frames; members of a combination decide each."""
    make, data = pair("dkd", div=1.0, frame_logits=True)
    step, batch = make(), data.batch()
    step.trained.eval()
    s, t = step.objective.features(batch)
    terms = step.objective.main_terms(s, t, batch, PROGRESS, step.method.weights(PROGRESS))
    torch.testing.assert_close(terms["div"], kl(s["frame_logits"], t["frame_logits"], 4.0))
    cls = method_dict["dkd"]
    frames = {"logits": s["frame_logits"]}, {"logits": t["frame_logits"]}
    labels = batch.__class__({}, batch.target.repeat_interleave(data.shapes["video"][0]), batch.index)
    torch.testing.assert_close(terms["dkd"], cls.terms(step.method, *frames, labels, PROGRESS)["dkd"])
    members = [(method_dict[n], method_dict[n].Config(frame_logits=True)) for n in ("dist", "at")]
    combined = CombinedConfig(members=tuple(members), frame_logits=True)
    torch.manual_seed(1)
    teacher = network(model_dict["tsm:resnet14"].fitted(data.shapes))
    student = model_dict["tsm:resnet8"].fitted(data.shapes)

    def joined():
        return make_step(Combined, combined, student, lambda: teacher, data, 8)

    assert joined()(batch, PROGRESS).terms.keys() == {"cls", "div", "dist", "at"}


def test_frame_logits_keep_the_contract():
    make, data = pair("dist", frame_logits=True)
    torch.manual_seed(2)
    check_contract(make, data.batch(), data.num_classes)


def test_frame_logits_need_scores_of_frames():
    with pytest.raises(UserError, match="tsn:resnet14 has none: leave it out"):
        pair("dist", teacher="tsn:resnet14", frame_logits=True)[0]()


def test_teacher_is_in_eval_mode_unless_its_dropout_is_asked_for():
    make, data = pair("kd", teacher="tsm:resnet14")
    step, batch = make(), data.batch()
    assert isinstance(step.teacher, LiveTeacher)
    plain = [step.teacher.features(batch, ())["logits"] for _ in range(2)]
    assert torch.equal(*plain)
    before = {k: v.clone() for k, v in step.teacher.net.state_dict().items()}
    keep_dropout(step.teacher)
    torch.manual_seed(0)
    noisy = [step.teacher.features(batch, ())["logits"] for _ in range(2)]
    assert not torch.equal(*noisy)
    assert all(torch.equal(v, before[k]) for k, v in step.teacher.net.state_dict().items())  # batch norm is off
    assert not any(m.training for m in step.teacher.net.model.modules())


def test_tsm_groups():
    """The classifier at five times the rate, its bias at ten; batch norm and biases undecayed."""
    model = model_dict["tsm:ResNet18"](num_classes=3)
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "lr_scale": 0.5}], lr=0.05, weight_decay=0.1)
    regroup(optimizer, tsm_multipliers(model, model.new_fc, True))
    found = {p: (g["lr_scale"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found[model.new_fc.weight] == (2.5, 0.1) and found[model.new_fc.bias] == (5.0, 0.0)
    assert found[model.base_model.conv1.weight] == (0.5, 0.1)
    assert found[model.base_model.layer1[0].conv1.net.weight] == (0.5, 0.1)
    assert found[model.base_model.bn1.weight] == found[model.base_model.bn1.bias] == (0.5, 0.0)
    assert len(found) == len(list(model.parameters()))
    assert {g["lr"] / g["lr_scale"] for g in optimizer.param_groups} == {0.1}
    plain = tsm_multipliers(model, model.new_fc, False)
    assert plain[model.new_fc.weight] == (1.0, 1.0) and plain[model.new_fc.bias] == (2.0, 0.0)
    with pytest.raises(UserError, match="LayerNorm: use --param_groups one"):
        tsm_multipliers(torch.nn.Sequential(torch.nn.LayerNorm(3)), model.new_fc, False)


def test_gradient_is_clipped():
    make, data = pair("kd")
    step, batch = make(), data.batch()
    step.train()
    step.setup = dataclasses.replace(step.setup, optim=OptimConfig(clip_grad=0.01))
    step(batch, PROGRESS)
    norm = torch.stack([p.grad.norm() for p in step.main_params]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


def test_warm_up_and_decay():
    schedule = make_schedule(
        ScheduleConfig(epochs=50, learning_rate=0.02, lr_decay_epochs="25,45", warmup_epochs=5, warmup_start=0.1)
    )
    assert [round(schedule(e), 6) for e in (1, 2, 5, 6, 25, 26, 46)] == [
        0.002,
        0.0056,
        0.0164,
        0.02,
        0.02,
        0.002,
        0.0002,
    ]


def test_start_from_image_weights(tmp_path):
    """torchvision's keys, and an OpenMMLab file; the classifier of other classes starts fresh."""
    torch.manual_seed(0)
    image = model_dict["torchvision:resnet18"](num_classes=10)
    torch.save(image.state_dict(), tmp_path / "image.pth")
    spec = model_dict["tsm:torchvision:resnet18"]
    started = started_from(spec, str(tmp_path / "image.pth"))(num_classes=3)
    assert torch.equal(started.base_model.layer1[0].conv1.net.weight, image.layer1[0].conv1.weight)
    assert started.new_fc.weight.shape == (3, 512)
    torch.save({"state_dict": to_openmmlab("resnet", started.state_dict())}, tmp_path / "mm.pth")
    again = started_from(spec, str(tmp_path / "mm.pth"))(num_classes=3)
    assert torch.equal(again.new_fc.weight, started.new_fc.weight)
    state = image.state_dict()
    del state["layer1.0.conv1.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(UserError, match="part.pth does not fit tsm:torchvision:resnet18: 1 of 122"):
        started_from(spec, str(tmp_path / "part.pth"))(num_classes=3)
    with pytest.raises(UserError, match="there are no published ImageNet weights of tsm:resnet8"):
        started_from(model_dict["tsm:resnet8"], "imagenet")(num_classes=3)


# --- distillation checkpoints of MMRazor ------------------------------------------------------------------------------


def mmengine_module(monkeypatch):
    """A class pickled as MMEngine's HistoryBuffer is: arrays, and its own methods by name."""
    name = "mmengine.logging.history_buffer"
    for part in ("mmengine", "mmengine.logging", name):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))

    class HistoryBuffer:
        def mean(self):
            return 0

    assert HistoryBuffer().mean() == 0
    HistoryBuffer.__module__ = name
    HistoryBuffer.__qualname__ = "HistoryBuffer"
    HistoryBuffer.mean.__qualname__ = "HistoryBuffer.mean"
    HistoryBuffer.mean.__module__ = name
    HistoryBuffer.__getstate__ = lambda self: {
        "_log_history": np.array([1.5, 2.5]),
        "largest": np.float64(3),
        "statistics_methods": {"mean": HistoryBuffer.mean},
    }
    sys.modules[name].HistoryBuffer = HistoryBuffer
    return HistoryBuffer


class Planted:
    def __reduce__(self):
        return print, ("ran",)


def test_convert_a_raw_training_checkpoint(tmp_path, commands, monkeypatch):
    buffer = mmengine_module(monkeypatch)
    student = model_dict["tsm:torchvision:resnet18"](num_classes=3)
    weights = to_openmmlab("resnet", student.state_dict())
    state = {f"architecture.{k}": v for k, v in weights.items()} | {f"teacher.{k}": v for k, v in weights.items()}
    content = {
        "meta": {"epoch": 3, "cfg": "model = dict()", "dataset_meta": {}, "odd": buffer()},
        "state_dict": state,
        "message_hub": {"log_scalars": {"train/loss": buffer()}, "runtime_info": {"epoch": np.int64(3)}},
        "optimizer": {"state": {}},
    }
    raw = tmp_path / "epoch_3.pth"
    torch.save(content, raw)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(raw, weights_only=True)
    script = "scripts/convert_kd_ckpt_to_student.py"
    done = commands(script, raw).finished()
    assert "epoch_3_student.pth" in done.out and "odd" in done.out
    converted = torch.load(tmp_path / "epoch_3_student.pth", weights_only=True)
    assert converted.keys() == {"meta", "state_dict"}
    assert converted["meta"] == {"epoch": 3, "cfg": "model = dict()", "dataset_meta": {}}
    assert converted["state_dict"].keys() == weights.keys()
    assert all(torch.equal(v, weights[k]) for k, v in converted["state_dict"].items())
    commands(script, tmp_path / "epoch_3_student.pth").refused("holds no student", "converted already")
    commands(script, raw, "--out-path", tmp_path / "nowhere").refused("is not a folder")
    commands(script, raw, "--inplace", "--out-path", tmp_path).refused("--inplace")
    torch.save({**content, "message_hub": Planted()}, raw)
    refused = commands(script, raw)
    refused.refused("epoch_3.pth is refused", "print", "state_dict instead")
    assert "ran" not in refused.out.split()
    commands(script, tmp_path / "none.pth").refused("cannot read checkpoint")
    (tmp_path / "folder").mkdir()
    torch.save({"meta": {}, "state_dict": state}, raw)
    commands(script, raw, "--out-path", tmp_path / "folder").finished()
    assert (tmp_path / "folder" / "epoch_3_student.pth").exists()
    commands(script, raw, "--inplace").finished()
    assert torch.load(raw, weights_only=True)["state_dict"].keys() == weights.keys()


# --- end to end -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    from tests.dataset.test_video import write_video

    root = tmp_path_factory.mktemp("clips")
    for i in range(8):
        write_video(root / f"{i}.avi", 8 + i)
    (root / "train.txt").write_text("".join(f"{i}.avi {i % 2}\n" for i in range(6)))
    (root / "test.txt").write_text("6.avi 0\n7.avi 1\n")
    return root


def test_from_teacher_to_tested_student(videos, tmp_path, commands):
    data = ("--dataset", "video", "--data_folder", videos, "--image_size", 32, "--short_side", 32, "--num_segments", 4)
    data += ("--num_workers", 0)
    run = (*data, "--frame_cache", tmp_path / "cache", "--batch_size", 3, "--epochs", 2, "--lr_decay_epochs", 1)
    run += ("--save_root", tmp_path, "--tb_backend", "none", "--precision", "fp32")
    recipe = ("--clip_grad", 20, "--param_groups", "tsm", "--no_flip")
    commands("train_teacher.py", "--model", "tsm:resnet14", *run, *recipe, "--warmup_epochs", 1).finished()
    (teacher,) = (tmp_path / "teachers").rglob("*_best.pth")
    common = ("--path_t", teacher, "--model_s", "tsm:resnet8", "--distill", "dist", "--div", 0, *run, *recipe)
    commands("train_student.py", *common, "--frame_logits", "--teacher_dropout").finished()
    (folder,) = (tmp_path / "students" / "models").iterdir()
    described = json.loads((folder / "args.json").read_text())["identity"]
    assert (described["clip_grad"], described["frame_logits"], described["teacher_dropout"]) == (20.0, True, True)
    (student,) = folder.glob("*_best.pth")
    for views in (
        ("--crops", "three"),
        ("--crops", "ten", "--crop_size", 16),
        ("--clips", 2, "--average_clips", "score"),
    ):
        done = commands("test_model.py", "--path", student, *data, *views).finished()
        assert "mean class" in done.out and "2 samples" in done.out and "averaged by" in done.out
    several = commands("test_model.py", "--path", student, *data, *views, ranks=3).finished()  # one of them has no clip
    assert several.out.splitlines()[:-1] == done.out.splitlines()[:-1]  # the last line tells the time
    commands("test_model.py", "--path", student, *data, "--clips", 4).refused("--sampling dense")
    commands("test_model.py", "--path", student, "--dataset", "digits", "--crops", "ten").refused(
        "is not a list of videos"
    )
    refused = commands(
        "train_student.py", *common, "--teacher_dropout", "--teacher_cache", tmp_path / "t", "--trial", 1
    )
    refused.refused("--teacher_dropout")
    (videos / "bad.txt").write_text("0.avi\n")
    commands("train_teacher.py", "--model", "tsm:resnet8", *run, "--train_list", videos / "bad.txt").refused("line 1")


def test_video_flags_say_when_they_do_nothing(commands, tmp_path):
    done = commands.teacher("--epochs", 1, "--max_steps", 1, "--save_root", tmp_path, "--sampling", "dense").finished()
    assert "--sampling (digits is not a list of videos)" in done.out


def test_value_of_a_method_is_untouched_without_frames():
    """The plain call of a logit method sees what it always saw."""
    cls = method_dict["dist"]
    method = cls(cls.Config(), None)
    s, t = {"logits": rand((4, 5), 0)}, {"logits": rand((4, 5), 1)}
    assert method.frames_as_views(s, t, None) == (s, t, None)
