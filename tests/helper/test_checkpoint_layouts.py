"""Checkpoints of other tools: the layouts that are read, and what is refused by its name."""

import argparse
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from core.protocols import UserError
from helper.networks.checkpoint import read_checkpoint
from models import model_dict
from models.external import input_options
from tests.helper.test_checkpoint import PlantedCall, assert_same

W = {"conv1.weight": torch.ones(2, 3, 3, 3), "fc.weight": torch.ones(4, 2)}


def saved(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    return tmp_path / "x.pth"


@pytest.mark.parametrize(
    "content",
    [
        {"epoch": 3, "model_state_dict": W, "optimizer_state_dict": {}, "loss": torch.tensor(0.3)},
        {"epoch": 3, "student": W, "loss": torch.tensor(0.3)},
        {"epoch": 3, "state_dict": {f"model.{k}": v for k, v in W.items()}},
        {"epoch": 3, "state_dict": {f"net.{k}": v for k, v in W.items()} | {"loss_fn.weight": torch.ones(4)}},
        {"epoch": 3, "state_dict": {f"model._orig_mod.{k}": v for k, v in W.items()} | {"criterion.w": torch.ones(4)}},
        {"epoch": 3, "model": W | {"total_ops": torch.zeros(1), "fc.total_params": torch.zeros(1)}},
        {"epoch": np.int64(3), "model": {f"module.{k}": v for k, v in W.items()} | {"n_averaged": torch.tensor(5)}},
        {"epoch": 3, "model": W, "args": argparse.Namespace(root=Path("a"), lr=np.float32(1), steps=np.arange(3))},
        {"epoch": 3, "model": W, "names": np.array(["a", "b"]), "mean": np.ones(3), "flag": np.bool_(True)},
    ],
    ids=range(9),
)
def test_layouts_of_other_tools(tmp_path, content):
    checkpoint = read_checkpoint(saved(tmp_path, content))
    assert_same(checkpoint.state, W)
    assert checkpoint.epoch == 3


def test_numpy_accuracy_and_fractions(tmp_path):
    for recorded, percent in ((np.float32(72.5), 72.5), (np.float64(0.725), 72.5), (torch.tensor(0.5), 50)):
        assert read_checkpoint(saved(tmp_path, {"model": W, "best_acc": recorded})).best_acc == pytest.approx(percent)
    ours = {"model": W, "best_acc": 0.9, "meta": {"arch": "resnet8"}}
    assert read_checkpoint(saved(tmp_path, ours)).best_acc == 0.9, "percent"


def test_averaged_weights_are_read_on_request(tmp_path, caplog):
    averaged = {f"module.{k}": v / 2 for k, v in W.items()} | {"n_averaged": torch.tensor(5)}
    path = saved(tmp_path, {"model": W, "model_ema": averaged, "best_acc": 70})
    with caplog.at_level("INFO"):
        assert_same(read_checkpoint(path).state, W)
    assert f"averaged weights (model_ema) and trained ones (model), which are used: {path}@ema" in caplog.text
    checkpoint = read_checkpoint(f"{path}@ema")
    assert_same(checkpoint.state, {k: v / 2 for k, v in W.items()})
    assert (checkpoint.peer, checkpoint.path, checkpoint.best_acc) == ("ema", path, None)
    with pytest.raises(UserError, match="holds no averaged weights .*: leave @ema out"):
        read_checkpoint(f"{saved(tmp_path, {'model': W})}@ema")


def test_keys_of_the_first_densenets(tmp_path):
    dotted = {f"features.denseblock1.denselayer2.{part}.1.weight": torch.ones(1) for part in ("norm", "conv")}
    found = read_checkpoint(saved(tmp_path, {**dotted, "features.transition1.norm.weight": torch.ones(1)})).state
    assert list(found) == [
        *(f"features.denseblock1.denselayer2.{part}1.weight" for part in ("norm", "conv")),
        "features.transition1.norm.weight",
    ]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (lambda: torch.ones(2, dtype=torch.complex64), "fc.weight is complex"),
        (lambda: torch.eye(2).to_sparse(), "fc.weight is sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "fc.weight is quantised"),
        (lambda: torch.ones(2, device="meta"), "fc.weight is without values"),
        (lambda: torch.tensor([1, float("nan")]), "fc.weight holds NaN"),
        (lambda: torch.ones(1).expand(10**12), "weights of 3725.3 GiB, more memory than is free"),
    ],
    ids=["complex", "sparse", "quantised", "meta", "nan", "huge"],
)
def test_weights_that_no_network_can_take(tmp_path, weight, words):
    with pytest.raises(UserError, match=words):
        read_checkpoint(saved(tmp_path, {"model": {"fc.weight": weight()}}))


def test_several_sets_of_weights_are_not_guessed(tmp_path):
    with pytest.raises(UserError, match=r"several sets of weights \(student, teacher\)"):
        read_checkpoint(saved(tmp_path, {"student": W, "teacher": W}))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_refused_pickle_says_what_it_would_call(tmp_path, protocol):
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps({"model": PlantedCall(tmp_path / "trace")}, protocol))
    with pytest.raises(UserError, match=r"x.pth is refused: it needs (builtins\.)?exec, and only"):
        read_checkpoint(path)
    assert not (tmp_path / "trace").exists()


def test_programs_are_named(tmp_path):
    for member, words in (
        ("x/constants.pkl", r"TorchScript program \(torch.jit.load\)"),
        ("x/models/model.json", "exp"),
    ):
        with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
            archive.writestr(member, b"")
        with pytest.raises(UserError, match=rf"x.pth is a .*{words}.*save its state_dict"):
            read_checkpoint(tmp_path / "x.pth")


def test_what_needs_more_memory_than_is_free_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data/0", bytes(3 << 20))
    assert path.stat().st_size < 1 << 15
    monkeypatch.setattr("helper.networks.checkpoint.free", lambda: 2 << 20)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("read"))
    with pytest.raises(UserError, match="GiB of memory, but .* are free"):
        read_checkpoint(path)


@pytest.mark.parametrize("meta", ["[" * 100_000, "[1]", "5"], ids=["deep", "list", "number"])
def test_odd_headers_of_safetensors(tmp_path, meta):
    header = f'{{"__metadata__":{{"meta":"{meta}"}}}}'.encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match=r"not a safetensors file \(maximum rec|holds no weights"):
        read_checkpoint(tmp_path / "x.safetensors")


def test_auxiliary_heads_of_torchvision_networks():
    """Files in torchvision's layout normalise as torchvision trained them; those of a run as the run recorded."""
    spec = model_dict["torchvision:googlenet"]
    assert spec.published.adapt({"aux1.fc2.weight": 1, "fc.weight": 2}) == {"fc.weight": 2}
    both = {"aux2.fc2.weight": torch.ones(1), "fc.weight": torch.ones(1)}
    for meta, state, wanted in (({}, both, True), ({}, W, False), ({"transform_input": True}, W, True)):
        assert input_options(spec.name, meta, state) == {"transform_input": wanted}
    assert input_options("torchvision:resnet18", {}, both) == {}
