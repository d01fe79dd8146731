"""predict.py prepares a file as its data set does in evaluation, and says what the network says."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import predict
from core.protocols import UserError
from dataset import dataset_dict
from dataset.base import DataOptions, data_options
from dataset.single_file import InputFormat
from helper.deploy import predictor
from helper.deploy.predictor import open_predictor
from models import load_student, model_dict
from tests.support.commands import ROOT
from tests.support.recordings import left_bright, utd, write_video
from tests.support.shared import shared

CPU = torch.device("cpu")


def saved(path, data, name, kind="image"):
    """A network with random weights, as a run on `data` leaves it."""
    torch.manual_seed(0)
    meta = {"arch": name, "num_classes": data.num_classes, "dataset": data.name, "classes": list(data.classes)}
    meta["shapes"] = {kind: list(data.shapes[kind])}
    meta |= data.described
    spec = model_dict[name].fitted(data.shapes)
    torch.save({"model": spec(num_classes=data.num_classes).state_dict(), "meta": meta}, path)
    return path


def first_batch(data, kind):
    return next(iter(data.test_loader(8, device=CPU))).inputs[kind]


def photos(root, sizes=((40, 50), (64, 33), (90, 41))):
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for i, (height, width) in enumerate(sizes):
                pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


def jpegs(root):
    """Real images, two of each of three classes, in both parts."""
    for part in ("train", "val"):
        for folder in sorted((shared("imagenette_small") / "val").iterdir())[:3]:
            (root / part / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:2]:
                (root / part / folder.name / image.name).symlink_to(image)
    return root


@pytest.mark.parametrize("name", ["folder", "imagenet"])
@pytest.mark.parametrize("make", [photos, jpegs])
def test_pictures_are_read_as_in_evaluation(make, name, tmp_path):
    make(tmp_path)
    data = dataset_dict[name](DataOptions(tmp_path, image_size=32))
    path = saved(tmp_path / "resnet8_best.pth", data, "resnet8")
    predictor = open_predictor(path)
    files = predictor.files([tmp_path / "val"])
    expected = first_batch(data, "image")
    found = list(predictor(files, 2))
    assert len(files) == len(expected) == 6 and torch.equal(torch.stack([f.x for f in found]), expected)
    with torch.no_grad():
        p = load_student(path)(expected).softmax(1).max(1)
    assert [f.top[0][0] for f in found] == [data.classes[i] for i in p.indices]
    np.testing.assert_allclose([f.top[0][1] for f in found], p.values, rtol=1e-6)


def video_list(root, files):
    for part in ("train", "test"):
        (root / f"{part}.txt").write_text("".join(f"{file} {i}\n" for i, file in enumerate(files)))
    return root


@pytest.mark.parametrize("sampling", ["uniform", "dense"])
@pytest.mark.parametrize("real", [False, True])
def test_videos_are_read_as_in_evaluation(sampling, real, tmp_path):
    if real:
        files = [shared("action_clips") / name for name in ("mmaction2_test.mp4", "v_SoccerJuggling_g23_c01.avi")]
    else:
        files = [tmp_path / f"{i}.avi" for i in range(2)]
        for i, file in enumerate(files):
            write_video(file, left_bright(12 + i, i, (48, 64)))
    video_list(tmp_path, files)
    more = {"sampling": sampling, "short_side": 40}
    data = dataset_dict["video"](data_options(tmp_path, image_size=32, num_segments=3, **more))
    path = saved(tmp_path / "net_best.pth", data, "tsn:resnet8", "video")
    found = list(open_predictor(path)(files, 1))
    expected = torch.cat([b.inputs["video"] for b in data.test_loader(2, device=CPU)])
    assert torch.equal(torch.stack([f.x for f in found]), expected) and expected.shape == (2, 3, 3, 32, 32)


def test_action_recordings_are_read_as_in_evaluation(tmp_path):
    root = utd(tmp_path / "utd")
    for modality, name, kind in (("gyro", "sensor_cnn", "sensor"), ("video", "trn:resnet8", "video")):
        data = dataset_dict["utd_mhad"](
            data_options(root, image_size=32, modality=(modality,), window=48, num_segments=3)
        )
        path = saved(tmp_path / f"{kind}_best.pth", data, name, kind)
        files = [s.files[modality].path for s in data.test]
        found = list(open_predictor(path)(files, 1))
        assert torch.equal(torch.stack([f.x for f in found]), next(iter(data.test_loader(99, device=CPU))).inputs[kind])


def test_a_real_recording(tmp_path):
    path = shared("utd_mhad") / "Inertial" / "a2_s1_t1_inertial.mat"
    x = InputFormat("sensor", (3, 64), modality="accel").read(str(path))
    assert x.shape == (3, 64) and x.isfinite().all()
    with pytest.raises(UserError, match="has 3 axes, but the network reads 6"):
        InputFormat("sensor", (6, 64), modality="accel").read(path)


def test_written_out_and_shown(tmp_path, capsys):
    data = dataset_dict["folder"](DataOptions(photos(tmp_path), image_size=32))
    path, out = saved(tmp_path / "resnet8_best.pth", data, "resnet8"), tmp_path / "out"
    predict.main(
        [str(tmp_path / "val"), "--path", str(path), "--top", "2"]
        + ["--csv", str(out / "a.csv"), "--json", str(out / "a.json"), "--show", str(out / "a.png")]
    )
    rows = list(csv.DictReader((out / "a.csv").open()))
    told = json.loads((out / "a.json").read_text())
    assert len(rows) == 12 and {r["class"] for r in rows} == {"cat", "dog"}
    for i, one in enumerate(told):
        assert one["file"] == rows[2 * i]["file"] and one["top"][0]["class"] == rows[2 * i]["class"]
        assert sum(t["probability"] for t in one["top"]) == pytest.approx(1)
    assert capsys.readouterr().out.count("dog") >= 6
    with Image.open(out / "a.png") as picture:
        assert picture.width > 800 and len(picture.convert("L").getcolors(1 << 20) or ()) > 50


def test_no_input_stays_in_memory(tmp_path, monkeypatch):
    data = dataset_dict["folder"](DataOptions(photos(tmp_path), image_size=32))
    path, kept = saved(tmp_path / "resnet8_best.pth", data, "resnet8"), []
    monkeypatch.setattr(predict, "as_csv", lambda found: kept.extend(one.x.numel() for one in found) or "")
    predict.main([str(tmp_path / "val"), "--path", str(path), "--csv", str(tmp_path / "a.csv")])
    assert kept == [0] * 6


@pytest.mark.parametrize("form", ["safetensors", "onnx", "export"])
def test_from_an_export(form, tmp_path, quick_export):
    """ONNX through onnxruntime, weights and program say what the checkpoint says, classes included."""
    for package in ("safetensors", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"needs {package}, of requirements-extra.txt")
    from scripts.export_student import main as export

    data = dataset_dict["imagenet"](DataOptions(photos(tmp_path), image_size=32))
    path, out = saved(tmp_path / "resnet8_best.pth", data, "resnet8"), tmp_path / "out"
    export(
        ["--path", str(path), "--dataset", "imagenet", "--data_folder", str(tmp_path), "--out", str(out)]
        + ["--forms", form]
    )
    files = sorted((tmp_path / "val").rglob("*.png"))
    expected = list(open_predictor(path)(files))
    (file,) = out.glob("model.*")
    for source in (out, file):
        for one, other in zip(open_predictor(source)(files), expected, strict=True):
            assert torch.equal(one.x, other.x) and [n for n, _ in one.top] == [n for n, _ in other.top]
            np.testing.assert_allclose([p for _, p in one.top], [p for _, p in other.top], atol=1e-5)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged|truncated"):
        open_predictor(file)


def test_an_int8_sensor_network_runs_without_torch(tmp_path, monkeypatch, quick_export):
    """examples/sensor_without_torch.py, in a process that cannot import torch, says of a .mat what predict.py says."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"needs {package}, of requirements-extra.txt")
    from scripts.export_student import main as export

    root = utd(tmp_path / "utd", video=False)
    data = dataset_dict["utd_mhad"](data_options(root, modality=("accel",), window=48))
    path, out = saved(tmp_path / "sensor_cnn_best.pth", data, "sensor_cnn", "sensor"), tmp_path / "out"
    monkeypatch.setattr("scripts.export_student.quantize_program", lambda *_: "not tried here")  # a minute of tracing
    export(["--path", str(path), "--data_folder", str(root), "--out", str(out), "--forms", "onnx", "--int8"])
    (tmp_path / "torch.py").write_text("raise ImportError('this program runs without torch')")
    recording = data.test[0].files["accel"].path
    command = [sys.executable, ROOT / "examples" / "sensor_without_torch.py", out / "model_int8.onnx", recording]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (expected,) = open_predictor(out / "model_int8.onnx")([recording], 3)
    for line, (name, share) in zip(done.stdout.splitlines(), expected.top, strict=True):
        assert line.rpartition("  ")[0] == name
        assert float(line.split()[-2]) == pytest.approx(100 * share, abs=0.2)


def test_one_sentence_each(tmp_path):
    data = dataset_dict["folder"](DataOptions(photos(tmp_path), image_size=32))
    path = saved(tmp_path / "resnet8_best.pth", data, "resnet8")
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty" / ".hidden").mkdir(parents=True)
    (tmp_path / "empty" / ".hidden" / "a.jpg").write_text("no picture")

    def refused(*argv):
        with pytest.raises(UserError) as error:
            predict.main([str(a) for a in argv])
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "text.jpg' is corrupt or not an image" in refused(tmp_path / "text.jpg", "--path", path)
    assert "there is no file" in refused(tmp_path / "none.png", "--path", path)
    assert "holds no file that a network of an image reads" in refused(tmp_path / "empty", "--path", path)
    assert "--top 0" in refused(tmp_path / "text.jpg", "--path", path, "--top", 0)
    assert "there is no file" in refused(Path("a.png"), "--path", tmp_path / "none.onnx")
    assert "give it with --model" in refused(tmp_path / "text.jpg", "--path", unnamed(tmp_path / "x.pth"))


def test_an_error_without_a_message_is_named_by_its_kind(tmp_path):
    (tmp_path / "a.pt2").write_bytes(b"")

    def load(path):
        raise EOFError

    with pytest.raises(UserError, match=r"a.pt2' is damaged or not an exported program \(EOFError\)"):
        predictor._opened(tmp_path / "a.pt2", "exported program", load)


def unnamed(path):
    torch.save(model_dict["resnet8"](num_classes=2).state_dict(), path)
    return path


def test_the_command_ends_with_one_sentence(commands, tmp_path):
    commands("predict.py", "--path", unnamed(tmp_path / "resnet8.pth"), tmp_path / "a.png").refused("there is no file")
