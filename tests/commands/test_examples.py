"""The example loops train on image files, with methods of several kinds."""

import importlib

import pytest
import torch
from torchvision.models import mobilenet_v3_small

from tests.support import image_sets


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """40 images of four classes, and 8 others."""
    return image_sets.jpegs(tmp_path_factory.mktemp("images"), 4, train=10, test=2)


@pytest.mark.parametrize("method", ["crd", "ft"])
def test_plain_loop(few, method, capsys):
    from examples import plain_loop

    plain_loop.main([str(few / "train"), str(few / "test"), "--method", method, "--side", "32"])
    said = capsys.readouterr().out
    assert said.count("epoch 1: loss") == (2 if method == "ft" else 1) and "accuracy" in said and "nan" not in said


@pytest.mark.parametrize("name, package", [("lightning_module", "lightning"), ("hf_trainer", "transformers")])
def test_loops_of_other_libraries(few, name, package, tmp_path, capsys):
    pytest.importorskip(package, reason=f"needs {package}, of requirements-extra.txt")
    example = importlib.import_module(f"examples.{name}")
    folders = [str(few / "train")] + [str(few / "test")] * (name == "hf_trainer")
    out = tmp_path / ("out" if name == "hf_trainer" else "student.pth")
    example.main([*folders, "--max_steps", "2", "--side", "32", "--out", str(out)])
    assert "nan" not in capsys.readouterr().out
    trained = out / "student.pth" if out.is_dir() else out
    mobilenet_v3_small(num_classes=4).load_state_dict(torch.load(trained, weights_only=True))
