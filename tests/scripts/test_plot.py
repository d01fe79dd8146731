"""Pictures: what they are drawn from is right, and each is drawn."""

import itertools

import numpy as np
import pytest
import torch

from core.protocols import UserError
from distiller_zoo import method_dict
from helper.deploy.pictures import pyplot
from helper.evaluation.metrics import calibration
from helper.tables.looks import FIRST, looks
from scripts.plot import correlations, label_points, main
from tests.support.packages import need
from tests.support.run_folders import write_run

need("matplotlib")


def drawn(path) -> float:
    """How much of a picture is not background: the standard deviation of its pixels."""
    from PIL import Image

    pixels = np.asarray(Image.open(path).convert("L"), dtype=float)
    assert pixels.shape[0] > 200 and pixels.shape[1] > 300
    return pixels.std()


def test_calibration_is_the_sum_over_bins():
    logits, target = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * 2, torch.arange(200) % 5
    confidence, predicted = logits.double().softmax(1).max(1)
    expected = 0.0
    for k in range(10):
        inside = (confidence > k / 10) & (confidence <= (k + 1) / 10)
        if inside.any():
            gap = (predicted[inside] == target[inside]).double().mean() - confidence[inside].mean()
            expected += inside.double().mean() * gap.abs()
    error, bins = calibration(logits, target, 10)
    assert error == pytest.approx(float(expected), abs=1e-12) and bins[:, 2].sum() == pytest.approx(1)
    sure = torch.eye(5)[target] * 100
    assert calibration(sure, target)[0] == pytest.approx(0, abs=1e-9)
    assert calibration(sure, (target + 1) % 5)[0] == pytest.approx(1, abs=1e-9)


def test_correlations_of_logits():
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    logits[:, 3] = 0  # a class whose logit never changes
    found = correlations(logits)
    assert torch.allclose(found[:3, :3], torch.tensor(np.corrcoef(logits[:, :3].double().T))) and not found[3].any()


def test_a_method_keeps_its_colour_and_no_two_curves_look_alike():
    names = [*method_dict, "kd+crd"]
    found = looks([*names, "kd"])
    assert len(set(found)) == len(found)
    assert [colour for colour, _ in found[:-1]] == [looks([name])[0][0] for name in names]  # whatever stands beside it
    assert len({line for _, line in looks(["vanilla", "kd", "simkd", "crd"])}) == 4  # in grey
    assert len({colour for colour, _ in looks(FIRST)}) == len(FIRST)


def test_pictures_of_runs(tmp_path):
    for trial in (0, 1):
        write_run(tmp_path, f"--distill kd --trial {trial}", [60, 74 + trial], teacher="resnet32x4")
    write_run(tmp_path, "--distill simkd -c 0 -d 0 -b 1", [60, 70], teacher="resnet32x4")
    for kind in ("curves", "cost"):
        main([kind, "--root", str(tmp_path), "--out", str(tmp_path / f"{kind}.png")])
        assert drawn(tmp_path / f"{kind}.png") > 5
    main(["curves", "--root", str(tmp_path), "--only", "kd", "--out", str(tmp_path / "kd.svg")])
    text = (tmp_path / "kd.svg").read_text()
    assert "kd 74.50 ± 0.71" in text and "simkd" not in text  # text stays text
    with pytest.raises(UserError, match="--only vid matches no method"):
        main(["curves", "--root", str(tmp_path), "--only", "vid", "--out", str(tmp_path / "x.png")])
    with pytest.raises(UserError, match="cannot write"):
        main(["curves", "--root", str(tmp_path), "--out", str(tmp_path / "x.nothing")])


def test_labels_of_points_that_coincide_stay_in_the_axes():
    from matplotlib.text import Text

    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6.4, 5))
    label_points(figure, axis, [(0.5, 0.1 + k / 50, f"method {k}", "black") for k in range(20)])
    figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in axis.texts]
    assert all(axis.bbox.y0 <= box.y0 and box.y1 <= axis.bbox.y1 for box in boxes)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_pictures_of_networks(teacher, tmp_path):
    common = ["--path", str(teacher), "--dataset", "digits", "--images", "300"]
    for kind, more in (("correlation", ["--path_t", str(teacher)]), ("tsne", ["--classes", "4"]), ("reliability", [])):
        main([kind, *common, *more, "--out", str(tmp_path / f"{kind}.png")])
        assert drawn(tmp_path / f"{kind}.png") > 5
