"""HSAKD and DPCD from outside: teachers, students, peers, few images; what is refused, what is kept, what resumes."""

import json
import signal

import pytest
import torch

from helper.networks.checkpoint import load_file
from helper.networks.load import load_network
from tests.support.run_folders import TIMING, rows_of

SHORT = ("--epochs", 2, "--max_steps", 2, "--batch_size", 16, "--tb_backend", "none", "--precision", "fp32")
SMALL = ("--image_size", 16)
SHAPES = {"image": (3, 16, 16)}


def only(folder):
    (found,) = [p for p in folder.iterdir() if not p.is_symlink()]
    return found


@pytest.fixture(scope="module")
def aux_teacher(commands, tmp_path_factory):
    """resnet8_aux and its heads, trained together."""
    root = tmp_path_factory.mktemp("aux")
    argv = ("--model", "resnet8_aux", "--distill", "hsakd_teacher", *SHORT, *SMALL, "--save_root", root)
    done = commands.teacher(*argv, "--report_heads").finished()
    assert "aux3: Acc@1" in done.out
    return only(root / "teachers" / "models")


def test_a_teacher_says_what_it_is(aux_teacher):
    assert aux_teacher.name.startswith("resnet8_aux_hsakd_teacher_digits_trial_0")
    (first, _) = rows_of(aux_teacher)
    assert {"train_cls", "train_hsakd_teacher", "test_acc", "test_acc_aux1", "test_acc_aux3"} <= first.keys()
    parameters = json.loads((aux_teacher / "parameters.json").read_text())
    assert parameters["Deployed params"] < parameters["Total params"] / 2
    assert parameters["Deployed MACs"] == pytest.approx(12.5 / 4, abs=0.1)  # at 16 px; no head is part of it


def test_frozen_backbone(commands, aux_teacher, tmp_path):
    argv = ("--model", "resnet8_aux", "--distill", "hsakd_teacher", *SHORT, *SMALL, "--save_root", tmp_path)
    start = aux_teacher / "resnet8_aux_best.pth"
    commands.teacher(*argv, "--freezed", "--pretrained_backbone", start).finished()
    folder = only(tmp_path / "teachers" / "models")
    assert "freeze_backbone:True" in folder.name
    before, after = load_file(start)["model"], load_file(folder / "resnet8_aux_last.pth")["model"]
    changed = {k.split(".")[0] for k, v in before.items() if not torch.equal(v, after[k])}
    assert changed == {"auxiliary_classifier"}
    best = load_file(folder / "resnet8_aux_best.pth")["model"]
    assert all(torch.equal(v, best[k]) for k, v in after.items()), "its accuracy stays; the last heads are the best"
    assert all("train_cls" not in row for row in rows_of(folder))
    commands.teacher(*argv, "--freeze_backbone", "--overwrite").refused("--freeze_backbone", "--pretrained_backbone")
    other = (*argv, "--trial", 1, "--freezed", "--pretrained_backbone")
    commands.teacher(*other, "torchvision:resnet18").refused("1000 classes", "the data set has 10")
    commands.teacher(*other, "torchvision:resnet0").refused("torchvision has no network 'resnet0'")
    commands.teacher(*other, tmp_path / "no.pth").refused("no.pth", "No such file")


def test_pretrained_backbone_of_a_plain_file(commands, teacher, tmp_path):
    """A network's own checkpoint goes under the heads of its namesake."""
    argv = ("--model", "resnet8_aux_dpcd", "--distill", "dpcd_teacher", *SHORT, "--save_root", tmp_path)
    commands.teacher(*argv, "--freezed", "--pretrained_backbone", teacher).finished()
    after = load_file(only(tmp_path / "teachers" / "models") / "resnet8_aux_dpcd_best.pth")["model"]
    before = load_file(teacher)["model"]
    assert all(torch.equal(v, after[f"backbone.{k}"]) for k, v in before.items())
    commands.teacher(*argv, "--trial", 1, "--model", "wrn_16_1_aux_dpcd", "--pretrained_backbone", teacher).refused(
        "as the backbone of wrn_16_1_aux_dpcd", "does not fit"
    )


def test_only_methods_without_a_teacher_train_teachers(commands, tmp_path):
    for distill in ("kd", "dml", "hsakd"):
        commands.teacher("--distill", distill, "--save_root", tmp_path).refused(distill, "train_student.py")


def test_student_and_few_images(commands, aux_teacher, tmp_path):
    argv = ("--path_t", aux_teacher / "resnet8_aux_last.pth", "--model_s", "resnet8_aux", *SHORT, *SMALL)
    argv = (*argv, "--skip_validation", "--distill", "hsakd", "--save_root", tmp_path)
    commands.student(*argv).finished()
    commands.student(*argv, "--few_ratio", 0.25, "--rotations", 2, "--trial", 1).finished()
    names = sorted(p.name for p in (tmp_path / "students" / "models").iterdir())
    assert "few_ratio:0.25" in names[1] and "rotations:2" in names[1] and "hsakd" in names[0]
    commands.student(*argv, "--few_ratio", 0.003, "--batch_size", 1, "--trial", 2).refused(
        "few_ratio 0.003", "without a"
    )
    commands.student(*argv, "--model_s", "resnet8", "--trial", 2).refused("resnet8 has none", "_aux")
    commands.student(*argv, "--model_s", "resnet8_aux_dpcd", "--trial", 2).refused("use resnet8_aux")


@pytest.fixture(scope="module")
def online(commands, tmp_path_factory):
    """Two peers of resnet8_aux, nothing between."""
    root = tmp_path_factory.mktemp("online")
    commands.student(*ONLINE, "--save_root", root).finished()
    return only(root / "students" / "models")


ONLINE = ("--model_s", "resnet8_aux", "--distill", "hsakd_online", "--rotations", 3, "--epochs", 3, *SHORT[2:], *SMALL)


def test_both_peers_are_evaluated_saved_and_reported(online, commands, tmp_path):
    for row in rows_of(online):
        assert {"test_acc", "test_acc_peer", "train_peer_cls", "train_peer_div", "train_hsakd_online"} <= row.keys()
    best = online / "resnet8_aux_best.pth"
    states = [load_network(f"{best}@net{i}", None, 10, SHAPES) for i in (1, 2)]
    assert not torch.equal(*(n.model.backbone.conv1.weight for n in states))
    assert json.loads((online / "parameters.json").read_text())["last"]["test_acc_peer"] >= 0
    epoch = load_file(best)["epoch"]
    accuracy = [row["test_acc"] for row in rows_of(online)]  # of the first peer: nobody picks the better
    assert accuracy[epoch - 1] == max(accuracy)
    done = commands("test_model.py", "--path", f"{best}@net2", "--dataset", "digits", *SMALL)
    assert f"top-1 {rows_of(online)[epoch - 1]['test_acc_peer']:.2f}" in done.finished().out
    assert "recorded in the file" not in done.out, "its one number is the first peer's"
    argv = ("--distill", "kd", "--model_s", "resnet8", *SHORT, *SMALL, "--save_root", tmp_path)
    for i in (1, 2):
        done = commands.student(*argv, "--path_t", f"{best}@net{i}")
    done.refused("holds a run with other settings (teacher was")


def test_peers_refuse_a_teacher(commands, aux_teacher, tmp_path):
    path = aux_teacher / "resnet8_aux_best.pth"
    commands.student(*ONLINE, "--path_t", path, "--save_root", tmp_path).refused(
        "hsakd_online trains two peers", "would be ignored"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("steps", [[3, 2], pytest.param([1, 4], marks=pytest.mark.slow)])
def test_peers_resume_bit_by_bit(online, commands, tmp_path, steps):
    argv = (*ONLINE, "--save_root", tmp_path)
    for at in steps:
        done = commands.student(*argv, signals=[[at, int(signal.SIGTERM)]])
        assert done.code == 143, done
    commands.student(*argv).finished()
    folder = only(tmp_path / "students" / "models")
    assert rows_of(folder, TIMING) == rows_of(online, TIMING)
    for name in ("resnet8_aux_last.pth", "resnet8_aux_best.pth"):
        one, two = load_file(folder / name), load_file(online / name)
        for entry in ("model", "peer"):
            assert all(torch.equal(v, one[entry][k]) for k, v in two[entry].items())
    one, two = (load_file(f / "resnet8_aux_last.pth")["step_state"]["trained"] for f in (folder, online))
    assert one.keys() == two.keys() and all(torch.equal(v, one[k]) for k, v in two.items())


def test_confidences_of_dpcd_are_part_of_a_runs_state(commands, teacher, tmp_path):
    argv = ("--path_t", teacher, "--skip_validation", "--distill", "dpcd", "--model_s", "resnet8_aux_dpcd", *SHORT)
    argv = (*argv, "--dpcd_history", 40)
    commands.student(*argv, "--save_root", tmp_path / "whole").finished()
    broken = (*argv, "--save_root", tmp_path / "broken")
    assert commands.student(*broken, signals=[[3, int(signal.SIGTERM)]]).code == 143
    commands.student(*broken).finished()
    whole, resumed = (only(tmp_path / n / "students" / "models") for n in ("whole", "broken"))
    assert rows_of(whole, TIMING) == rows_of(resumed, TIMING)
    state = load_file(resumed / "resnet8_aux_dpcd_last.pth")["step_state"]["trained"]
    assert state["method.memory_seen"].item() == 64 and state["method.memory_confidence"].shape == (41,)
