"""Checkpoints: what is written survives, what is read cannot run anything, and errors name the way out."""

import argparse
import functools
import os
import pickle
import random
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from core import files
from core.files import atomic_save, atomic_write_text, intact, read_json, refuse_folder, remember, remembered
from core.protocols import UserError
from helper.networks.checkpoint import (
    Checkpoint,
    infer_arch,
    load_weights,
    num_classes_of,
    read_checkpoint,
    weights_in,
)
from models import model_dict

ROOT = Path(__file__).resolve().parents[2]


def network(num_classes: int = 10, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return model_dict["resnet8"](num_classes=num_classes)


def assert_same(a, b):
    assert list(a) == list(b)
    assert all(torch.equal(a[k], b[k]) for k in a)


# ---------------------------------------------------------------- writing


def test_save_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "resnet8_best.pth"
    for epoch in (1, 2):
        atomic_save({"model": network().state_dict(), "epoch": epoch}, path)
    assert read_checkpoint(path).epoch == 2
    atomic_write_text(tmp_path / "args.json", '{"ä": 1}')
    assert (tmp_path / "args.json").read_text(encoding="utf-8") == '{"ä": 1}'
    assert sorted(p.name for p in tmp_path.iterdir()) == ["args.json", "resnet8_best.pth"]


def test_a_folder_is_refused_before_it_is_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("a file")
    refuse_folder(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    for name, reason in {"file": "file is a file", "file/b": "file is a file", 300 * "n": "File name too long"}.items():
        with pytest.raises(UserError, match=f"cannot make the folder .*{reason}"):
            refuse_folder(tmp_path / name)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    refuse_folder(tmp_path)  # it is there already, perhaps with all that is read from it
    with pytest.raises(UserError, match="cannot be written to"):
        refuse_folder(tmp_path / "a")


def test_a_path_with_a_long_name_is_no_folder():
    assert weights_in(300 * "n") == 300 * "n"


def test_full_disk_keeps_the_previous_file(commands, tmp_path):
    """A limit on file size stands in for a full disk: both end a write with an OSError half way."""
    path = tmp_path / "last.pth"
    atomic_save({"model": {"w": torch.ones(3)}, "epoch": 1}, path)
    atomic_write_text(tmp_path / "metrics.jsonl", "old")
    script = """
import resource, sys, torch
from core.files import atomic_save, atomic_write_text, intact, read_json, remembered
from core.protocols import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
folder = sys.argv[1]
for write in (lambda: atomic_save({"model": {"w": torch.ones(100_000)}, "epoch": 2}, folder + "/last.pth"),
              lambda: atomic_write_text(folder + "/metrics.jsonl", "x" * 100_000),
              lambda: atomic_write_text(folder + "/new.jsonl", "x" * 100_000)):
    try:
        write()
    except UserError as error:
        print(error)
    else:
        sys.exit("no error")
"""
    run = subprocess.run([commands.python, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    messages = run.stdout.splitlines()
    assert messages[0] == f"cannot write {path}: File too large; its previous content is kept"
    assert messages[2] == f"cannot write {tmp_path / 'new.jsonl'}: File too large; nothing was written"
    assert read_checkpoint(path).epoch == 1
    assert (tmp_path / "metrics.jsonl").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pth", "metrics.jsonl"]


def test_failed_rename_keeps_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "args.json"
    atomic_write_text(path, "old")

    def refuse(self, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(UserError, match="Permission denied; its previous content is kept"):
        atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["args.json"]


def test_save_into_a_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*gone/x.pth: No such file or directory; nothing was written"):
        atomic_save({}, tmp_path / "gone" / "x.pth")


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
@pytest.mark.parametrize("entry", ["model", "net", "state_dict", None])
def test_every_form(tmp_path, entry, prefix, legacy):
    state = network().state_dict()
    content = {prefix + k: v for k, v in state.items()}
    path = tmp_path / "x.pth"
    torch.save({entry: content} if entry else content, path, _use_new_zipfile_serialization=not legacy)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.state, state)
    assert (checkpoint.meta, checkpoint.best_acc, checkpoint.epoch, checkpoint.extra) == ({}, None, None, {})


def test_all_that_a_run_records(tmp_path):
    path, net = tmp_path / "x.pth", network()
    proj = {"module.transfer.0.weight": torch.ones(2, 2, 1, 1)}
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9).state_dict()
    atomic_save(
        {
            "epoch": 7,
            "model": net.state_dict(),
            "best_acc": 71.5,
            "proj": proj,
            "optimizer": optimizer,
            "meta": {"arch": "resnet8", "num_classes": 10},
        },
        path,
    )
    checkpoint = read_checkpoint(path)
    assert (checkpoint.path, checkpoint.epoch, checkpoint.best_acc) == (path, 7, 71.5)
    assert checkpoint.meta == {"arch": "resnet8", "num_classes": 10}
    assert list(checkpoint.extra) == ["proj"]
    assert list(checkpoint.extra["proj"]) == ["transfer.0.weight"]


@pytest.mark.parametrize(
    ("recorded", "percent"),
    [
        ({"best_acc": 72.25}, 72.25),
        ({"best_acc": torch.tensor(72.25)}, 72.25),
        ({"accuracy": torch.tensor(72.25)}, 72.25),
        ({"acc": 0.7225}, 72.25),
        ({"acc": 72.25}, 72.25),
        ({}, None),
    ],
)
def test_accuracy_spellings(tmp_path, recorded, percent):
    torch.save({"net": {"w": torch.ones(1)}, **recorded}, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth").best_acc == (None if percent is None else pytest.approx(percent))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_cuda_tensors_arrive_on_the_cpu(tmp_path, monkeypatch, legacy):
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save({"model": {"w": torch.arange(3.0)}}, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    assert b"cuda:0" in (tmp_path / "x.pth").read_bytes()
    state = read_checkpoint(tmp_path / "x.pth").state
    assert state["w"].device.type == "cpu"
    assert state["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_namespace_is_read_and_allowed_nowhere_else(tmp_path, legacy):
    """RepDistiller pickles its options into {model}_last.pth."""
    path = tmp_path / "x.pth"
    torch.save(
        {"opt": argparse.Namespace(model="resnet8", lr=0.05, steps=[150, 180]), "model": network().state_dict()},
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    assert_same(read_checkpoint(path).state, network().state_dict())
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


class Planted:
    """Unpickling this naively creates the file `trace`."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


class PlantedCall(Planted):
    def __reduce__(self):
        return exec, (f"open({str(self.trace)!r}, 'w').close()",)


@pytest.mark.parametrize("planted", [Planted, PlantedCall])
@pytest.mark.parametrize(
    "save",
    [
        torch.save,
        functools.partial(torch.save, _use_new_zipfile_serialization=False),
        lambda obj, path: path.write_bytes(pickle.dumps(obj, protocol=2)),
        lambda obj, path: path.write_bytes(pickle.dumps(obj)),
    ],
    ids=["zip", "legacy", "pickle2", "pickle"],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_planted_code_does_not_run(tmp_path, planted, save):
    trace, path = tmp_path / "trace", tmp_path / "x.pth"
    save({"model": {"w": torch.ones(1)}, "meta": planted(trace)}, path)
    with pytest.raises(UserError, match=r"x.pth is (refused|truncated or not a checkpoint)"):
        read_checkpoint(path)
    assert not trace.exists()


def test_refusal_names_the_class(tmp_path):
    torch.save(network(), tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"refused: it needs models\.resnet\.ResNet, .*save its state_dict"):
        read_checkpoint(tmp_path / "x.pth")


JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01" + bytes(200)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a checkpoint (it is empty)"),
        (JPEG, "is not a checkpoint (it starts with b'\\xff\\xd8\\xff\\xe0')"),
        (b"complex\nnumbers\n", "is not a checkpoint (it starts with b'comp')"),
        (b"PK\x03\x04" + bytes(100), "is truncated or not a checkpoint ("),
        (b"\x80\x02" + bytes(100), "is truncated or not a checkpoint ("),
    ],
    ids=["empty", "jpeg", "text", "zip", "pickle"],
)
def test_foreign_files(tmp_path, content, message):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    assert f"{path} {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_truncated_files(tmp_path, part, legacy):
    path = tmp_path / "x.pth"
    torch.save({"model": network().state_dict()}, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(UserError, match=r"truncated or not a checkpoint \(.+\): fetch or save it again"):
        read_checkpoint(path)


def test_paths_that_are_no_file(tmp_path):
    with pytest.raises(UserError, match="cannot read checkpoint .*gone.pth: No such file"):
        read_checkpoint(tmp_path / "gone.pth")
    with pytest.raises(UserError, match="is a folder, not a checkpoint"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "best_acc": torch.tensor(1.0)}, "holds no weights, only epoch, best_acc"),
        ({"model": {}}, "holds no weights, only model"),
        ({}, "holds no weights, only an empty dict"),
        ([torch.ones(1)], "holds a list, not a dict of weights"),
    ],
)
def test_files_without_weights(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path / "x.pth")


# ---------------------------------------------------------------- loading into a network


def test_load_weights():
    source, target = network(seed=1), network(seed=2)
    load_weights(target, source.state_dict(), "teacher")
    assert_same(target.state_dict(), source.state_dict())


def test_batch_counters_may_be_missing():
    """Files of torch 0.4 and before have none."""
    state = {k: v for k, v in network(seed=1).state_dict().items() if not k.endswith("num_batches_tracked")}
    target = network(seed=2)
    load_weights(target, state, "teacher")
    assert_same({k: v for k, v in target.state_dict().items() if k in state}, state)


def test_other_number_of_classes():
    with pytest.raises(UserError, match=r"teacher x.pth was trained for 100 classes, but this ResNet has 10 \(fc\)"):
        load_weights(network(10), network(100).state_dict(), "teacher x.pth")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("resnet14", ["36 unexpected (layer1.1.conv1.weight, layer1.1.bn1.weight, layer1.1.bn1.bias, ...)"]),
        (
            "resnet8x4",
            ["6 unexpected (layer1.0.downsample.0.weight", "of another shape (conv1.weight [32, 3, 3, 3] inst"],
        ),
        ("vgg8", ["47 missing (conv1.weight, bn1.weight,", "37 unexpected (block0.0.weight"]),
    ],
)
def test_other_architecture(name, parts):
    """Nothing is loaded: the network is as before."""
    target, state = network(seed=2), model_dict[name](num_classes=10).state_dict()
    with pytest.raises(UserError) as caught:
        load_weights(target, state, "teacher x.pth")
    assert str(caught.value).startswith("teacher x.pth does not fit this ResNet: of 56 weights ")
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert_same(target.state_dict(), network(seed=2).state_dict())


def test_shapes_inside_are_no_matter_of_classes():
    state = network().state_dict()
    state["layer1.0.conv1.weight"] = torch.ones(8, 16, 3, 3)
    with pytest.raises(UserError, match=r"1 of another shape \(layer1.0.conv1.weight \[8, 16, 3, 3\] instead of"):
        load_weights(network(), state, "teacher")
    state = network().state_dict()
    state["fc.weight"] = torch.ones(10, 32)
    with pytest.raises(UserError, match=r"1 of another shape \(fc.weight"):
        load_weights(network(), state, "teacher")


def test_num_classes():
    assert num_classes_of(network(17).state_dict(), model_dict["resnet8"]) == 17
    with pytest.raises(UserError, match="no classifier.weight, the classifier of vgg8"):
        num_classes_of(network().state_dict(), model_dict["vgg8"])


# ---------------------------------------------------------------- which architecture

NAMES = ["resnet8", "resnet8x4", "resnet32", "resnet32x4", "wrn_40_2", "ShuffleV2", "ShuffleV2_1_5", "MobileNetV2"]
STUDENT = "S:resnet8x4_T:resnet32x4_cifar100_kd_r:1.0_a:1.0_b:0.0_0"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("resnet32x4_vanilla/resnet32x4_best.pth", "resnet32x4"),
        ("resnet32x4_vanilla/ckpt_epoch_240.pth", "resnet32x4"),
        ("wrn_40_2_vanilla/ckpt_epoch_240.pth", "wrn_40_2"),
        ("ShuffleV2_1_5_vanilla_cifar100_trial_0/best.pth", "ShuffleV2_1_5"),
        ("ShuffleV2_vanilla_cifar100_trial_0/best.pth", "ShuffleV2"),
        ("resnet8_vanilla/resnet32x4_best.pth", "resnet32x4"),
        ("teachers/resnet32x4.pth", "resnet32x4"),
        (f"{STUDENT}/resnet8x4_best.pth", "resnet8x4"),
        (f"{STUDENT}/best.pth", "resnet8x4"),
        (f"{STUDENT.replace(':', '~')}/best.pth", "resnet8x4"),
        ("S:ShuffleV2_1_5_T:wrn_40_2_cifar100_kd_r:1.0_a:1.0_b:0.0_0/best.pth", "ShuffleV2_1_5"),
    ],
)
def test_architecture_from_path(path, name):
    assert infer_arch(f"save/{path}", Checkpoint(Path(path), {}), None, NAMES) == name


@pytest.mark.parametrize("path", ["best.pth", "resnet32x5_vanilla/best.pth", "S:unknown_T:resnet8_0/best.pth"])
def test_architecture_that_no_name_tells(path):
    with pytest.raises(UserError, match="cannot tell the architecture of .*: give it with --model_t"):
        infer_arch(f"save/{path}", Checkpoint(Path(path), {}), None, NAMES)


def test_architecture_order():
    path = Path("resnet32_vanilla/resnet32_best.pth")
    silent, recorded = Checkpoint(path, {}), Checkpoint(path, {}, meta={"arch": "resnet8x4"})
    assert infer_arch(path, silent, None, NAMES) == "resnet32"
    assert infer_arch(path, silent, "wrn_40_2", NAMES) == "wrn_40_2"
    assert infer_arch(path, recorded, None, NAMES) == "resnet8x4"
    assert infer_arch(path, recorded, "resnet8x4", NAMES) == "resnet8x4"
    with pytest.raises(UserError, match="holds a resnet8x4, but --model_t is wrn_40_2"):
        infer_arch(path, recorded, "wrn_40_2", NAMES)


# ---------------------------------------------------------------- damage


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path):
    path, rng = tmp_path / "x.pth", random.Random(0)
    atomic_save({"model": network().state_dict(), "epoch": 1}, path)
    whole = path.read_bytes()
    assert intact(whole) is True
    for _ in range(40):
        at = rng.randrange(len(whole) - 40)  # what lies behind is the checksum's mark
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        with pytest.raises(UserError, match=r"x.pth is (damaged|not a checkpoint) \(.+\): "):
            read_checkpoint(path)
    path.write_bytes(whole[:5000] + bytes(4096) + whole[9096:])
    with pytest.raises(UserError, match="is damaged"):
        read_checkpoint(path)


def test_the_previous_content_is_kept_unless_damaged(tmp_path, monkeypatch):
    path, previous = tmp_path / "last.pth", tmp_path / "last.prev.pth"

    def epochs():
        return [torch.load(p, weights_only=True)["epoch"] for p in (previous, path)]

    for epoch in (1, 2, 3):
        atomic_save({"epoch": epoch, "w": torch.ones(1000)}, path, previous)
    assert epochs() == [2, 3]
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    atomic_save({"epoch": 4}, path, previous)
    assert epochs() == [2, 4]
    previous.unlink()
    previous.hardlink_to(path)  # killed between the two renames
    atomic_save({"epoch": 5}, path, previous)
    assert epochs() == [4, 5]

    def refuse(*names):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr("os.link", refuse)
    atomic_save({"epoch": 6}, path, previous)
    assert epochs() == [5, 6]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.prev.pth", "last.pth"]


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path / "pipe.pth", "/dev/zero"):
        with pytest.raises(UserError, match="is a pipe, a socket or a device, not a checkpoint"):
            read_checkpoint(path)


SHAPES = ("", "{", "[]", "5", "null", '"x"', "[" * 100_000, '{"identity": []}', '{"identity": null}', "\0\0\0\0", "{}")


@pytest.mark.parametrize("text", SHAPES, ids=range(len(SHAPES)))
def test_json_of_another_shape_is_one_sentence(tmp_path, text):
    path = tmp_path / "args.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"args.json is damaged \(.+\): try again") as caught:
        read_json(path, {"identity": dict}, "try again")
    assert "\n" not in str(caught.value)
    assert remembered(path, (int, float)) == {}


def test_a_changed_digit_in_what_is_remembered_is_noticed(tmp_path, caplog):
    path = tmp_path / "teacher_accuracy.json"
    remember({"a": 71.25, "b": 3}, path)
    assert remembered(path, (int, float)) == {"a": 71.25, "b": 3}
    path.write_text(path.read_text().replace("71.25", "71.35"))
    with caplog.at_level("INFO"):
        assert remembered(path, (int, float)) == {}
    assert "does not match its checksum): what it remembers is not used" in caplog.text
    with pytest.raises(UserError, match=r"is damaged \(its content does not match its checksum\): try again"):
        read_json(path, {}, "try again")
    path.write_text('{"a": 71.25}')  # of an older version
    files._say_unsealed.cache_clear()
    assert remembered(path, (int, float)) == read_json(path, {}, "") == {"a": 71.25}
    assert caplog.text.count("have no checksum") == 1


def test_json_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "env.json")
    for path in (tmp_path / "env.json", tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError, match="is not a file: try again"):
            read_json(path, {}, "try again")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"epoch": float("inf")}, "epoch = inf, not a finite number"),
        ({"epoch": float("nan")}, "epoch = nan"),
        ({"epoch": torch.tensor(1j)}, "epoch = "),
        ({"best_acc": 10**400}, "best_acc = 1000"),
        ({"acc": torch.tensor(float("nan"))}, "acc = "),
        ({"meta": {"arch": 5}}, "meta.arch is a int"),
        ({"meta": {"shapes": [1]}}, "meta.shapes is a list"),
        ({"meta": {"num_classes": "ten"}}, "meta.num_classes is a str"),
    ],
    ids=range(8),
)
def test_odd_values_of_a_checkpoint_are_one_sentence(tmp_path, more, words):
    torch.save({"model": network().state_dict(), **more}, tmp_path / "x.pth")
    with pytest.raises(UserError) as caught:
        read_checkpoint(tmp_path / "x.pth")
    assert words in str(caught.value) and "\n" not in str(caught.value)
