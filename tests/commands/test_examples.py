"""The example loops train on real images, with methods of several kinds."""

import importlib

import pytest
import torch
from torchvision.models import mobilenet_v3_small

from tests.support.commands import ROOT

PHOTOS = ROOT.parent / "shared" / "data" / "imagenette_small"
if not PHOTOS.exists():
    pytest.skip("shared data is absent: imagenette_small", allow_module_level=True)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """40 images of four classes, and 8 others."""
    root = tmp_path_factory.mktemp("photos")
    for part, source, count in (("train", "train", 10), ("test", "val", 2)):
        for folder in sorted((PHOTOS / source).iterdir())[:4]:
            (root / part / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:count]:
                (root / part / folder.name / image.name).symlink_to(image)
    return root


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
