"""Waiting: bars on a terminal, nothing elsewhere; trials that evaluate on a part; what a launcher hears."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from core.files import ROOT
from core.log import progress
from core.protocols import UserError
from dataset import dataset_dict
from dataset.base import DataOptions
from dataset.clips.frame_cache import FrameCache
from dataset.images.folder import decode_all
from helper.deploy.linear_probe import extract, fit_lbfgs, fit_sgd
from helper.deploy.quantize import accuracy, calibration_samples
from helper.evaluation.evaluate import LEAST, evaluate, open_test
from helper.networks.teacher_cache import _moved
from helper.tables.runs import find_runs
from helper.training.schedule import StepDecay


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def shown(monkeypatch):
    """What bars write to a terminal, without the two seconds in which they wait."""
    import tqdm

    real = tqdm.tqdm
    monkeypatch.setattr(tqdm, "tqdm", lambda *a, **k: real(*a, **{**k, "delay": 0, "mininterval": 0}))

    def start():  # in the test itself, as pytest exchanges the stream before it
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        return screen

    return start


def test_a_bar_on_a_terminal(shown):
    screen = shown()
    assert list(progress(iter("abc"), "letters", 3)) == ["a", "b", "c"]
    assert "letters: 100%" in screen.getvalue() or "letters:  67%" in screen.getvalue()


def test_a_short_wait_shows_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress("abc", "letters")) == ["a", "b", "c"]
    assert "letters" not in sys.stderr.getvalue()


def test_quiet_elsewhere(capsys, monkeypatch):
    parts = ["a"]
    assert progress(parts, "letters") is parts, "a file or a pipe"
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("core.machine.is_main", lambda: False)
    assert progress(parts, "letters") is parts, "another rank"
    assert capsys.readouterr().err == ""


def test_bars_of_libraries_stay_out_of_a_file():
    """As torchvision's of a download."""
    program = "from helper.options.quick import answer; answer('train_student.py'); import tqdm; list(tqdm.tqdm('abc'))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == done.stdout == ""


def test_waits_of_images_and_calibration(shown, tmp_path):
    screen = shown()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    assert len(decode_all([(tmp_path / "a.png", 0)], 8).labels) == 1
    accuracy(lambda x: x, [(torch.eye(2), torch.arange(2))])
    data = dataset_dict["digits"](DataOptions(tmp_path, image_size=8))
    assert sum(map(len, calibration_samples(data, "image", 40))) == 40
    for words in ("decoding images", "evaluation, batches", "calibration"):
        assert words in screen.getvalue()


def test_waits_of_the_probe(shown):
    screen = shown()
    x, y = torch.randn(40, 3), torch.arange(40) % 2
    fit_lbfgs((x, y), (x, y), 2, iterations=5, weight_decay=1e-3)
    fit_sgd((x, y), (x, y), 2, epochs=2, batch_size=8, schedule=StepDecay(0.1, (1,), 0.1), weight_decay=0.0, seed=0)
    assert "evaluations of L-BFGS" in screen.getvalue() and "epochs of the probe" in screen.getvalue()


def test_waits_of_features(shown, teacher):
    screen = shown()
    from helper.deploy.linear_probe import feature_net
    from helper.networks.load import load_network

    network = load_network(str(teacher), None, None, {"image": (3, 32, 32)})
    extract(feature_net(network, None, None), torch.zeros(4, 32, 32, 3, dtype=torch.uint8), 32, torch.device("cpu"))
    assert "features, view 1 of 1" in screen.getvalue()


def test_waits_of_tables_cache_and_clips(shown, teacher_run, tmp_path):
    screen = shown()
    assert find_runs(teacher_run.parents[2], None)
    assert torch.equal(_moved(torch.arange(10), torch.device("cpu"), 4), torch.arange(10))
    FrameCache.fill(_Clips(), ["a", "b"], None, 1)
    for words in ("runs below", "reading the teacher cache", "decoding clips"):
        assert words in screen.getvalue()


class _Clips:
    folder = None

    def get(self, source):
        return np.zeros((2, 3), np.uint8)


class _Data:
    """A test set of 20 batches."""

    def test_loader(self, batch_size, *, device, rank, world_size):
        return list(range(20))


@pytest.mark.parametrize(
    ("trial", "batches", "first"), [(None, 20, None), (128, 8, LEAST), (1500, 12, 1500), (9999, 20, None)]
)
def test_a_trial_evaluates_on_the_first_samples(trial, batches, first):
    found = open_test(_Data(), torch.device("cpu"), trial)
    assert (len(found), found.first) == (batches, first) and list(found) == list(range(batches))
    assert list(found) == list(range(batches)), "it can be read again"


def test_an_evaluation_shows_a_bar(shown):
    screen = shown()
    with pytest.raises(AttributeError):  # these are no batches; the bar has begun
        evaluate(lambda inputs: {}, open_test(_Data(), torch.device("cpu")), torch.device("cpu"))
    assert "evaluation" in screen.getvalue()


def test_an_evaluation_needs_a_sample():
    with pytest.raises(UserError, match="no test sample could be read"):
        evaluate(lambda inputs: {}, [], torch.device("cpu"))


def test_the_log_names_the_samples_of_a_trial(commands, tmp_path):
    rng, labels = np.random.default_rng(0), {}
    for part, count in (("train", 200), ("test", LEAST + 300)):
        labels[f"{part}_images"] = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        labels[f"{part}_labels"] = np.arange(count) % 100
    np.savez(tmp_path / "cifar100.npz", **labels, classes=[f"class{i}" for i in range(100)])
    argv = ("--dataset", "cifar100", "--data_folder", tmp_path, "--model", "resnet8", "--epochs", 1, "--max_steps", 1)
    argv = (*argv, "--tb_backend", "none", "--save_root", tmp_path / "save")
    out = commands("train_teacher.py", *argv).finished().out
    assert f" ** test of the first {LEAST}: Acc@1" in out and "with --max_steps is a trial" in out
    assert not (tmp_path / "save/teachers/models/resnet8_vanilla").exists()


def test_a_launcher_gets_the_sentence(commands, tmp_path):
    env = {"TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json")}
    done = commands.student("--distill", "kdd", env=env)
    done.refused("unknown method 'kdd'")
    said = json.loads((tmp_path / "error.json").read_text())["message"]
    assert said["message"] == done.err.strip() and said["errorCode"] == 2


def test_our_own_checkpoint_needs_no_conversion(commands, teacher):
    done = commands("scripts/convert_kd_ckpt_to_student.py", teacher).finished()
    assert "is already the student alone" in done.out and list(teacher.parent.glob("*_student.pth")) == []


def test_a_name_of_two_networks_is_explained(commands):
    argv = ("--model_s", "ResNet50", "--distill", "vanilla", "--image_size", 16, "--batch_size", 2, "--dry_run")
    assert "for images of this size, ResNet50 means ResNet50_cifar" in commands.student(*argv).finished().out
