"""A network that is taken away computes what its checkpoint does, in every form."""

import json
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from core.protocols import ModelSpec, UserError
from core.taps import TappedNet
from dataset import dataset_dict
from dataset.base import DataOptions
from helper.deploy.export import Plain, exported_program, onnx_session, write_onnx
from helper.networks.checkpoint import read_checkpoint
from models import model_dict
from models._torchvision import any_size
from models.vit import VisionTransformer
from scripts.export_student import TOLERANCE, main, reader_of, real_batch
from tests.support.commands import squeezed
from tests.support.packages import need
from tests.support.recordings import utd

need("safetensors", "onnx", "onnxscript", "onnxruntime")

pytestmark = pytest.mark.usefixtures("quick_export")

SHORT = ("--epochs", 1, "--max_steps", 4, "--tb_backend", "none", "--image_size", 16)


@pytest.fixture(scope="module")
def simkd(commands, teacher, tmp_path_factory):
    """The best checkpoint of a SimKD student: backbone, projector and the teacher's classifier."""
    root = tmp_path_factory.mktemp("export")
    argv = ("--path_t", teacher, "--distill", "simkd", "--skip_validation", "--save_root", root, *SHORT)
    commands.student(*argv).finished()
    (folder,) = (root / "students" / "models").iterdir()
    return folder / "resnet8_best.pth"


def exported(path, out, capsys, *more):
    main(
        ["--path", str(path), "--dataset", "digits", "--images", "100", "--image_size", "16", "--out", str(out), *more]
    )
    return capsys.readouterr().out


def test_every_form_of_a_composite(simkd, tmp_path, capsys, commands):
    said = exported(simkd, tmp_path, capsys)
    names = {"model.safetensors", "model.pt2", "model.onnx", "config.json", "README.md"}
    assert names <= {p.name for p in tmp_path.iterdir()} and said.count("agree to") == 3
    assert said.count("latency") == 6 and " ms on " in said
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "resnet8" and config["deploys"] == "simkd" and config["input_shape"] == [3, 16, 16]
    row = json.loads((simkd.parent / "metrics.jsonl").read_text().splitlines()[-1])
    assert config["run"]["last_epoch"]["accuracy"] == row["test_acc"]
    text = (tmp_path / "README.md").read_text()
    assert f"{row['test_acc']:.2f} %" in text and "simkd" in text and f"{config['parameters']:,}" in text
    assert "    python train_student.py " in text
    assert (tmp_path / "model.pt2").stat().st_size < 3 * (tmp_path / "model.safetensors").stat().st_size
    parameters = json.loads((simkd.parent / "parameters.json").read_text())
    assert config["parameters"] == round(parameters["Deployed params"] * 1e6)
    assert config["macs"] == pytest.approx(parameters["Deployed MACs"] * 1e6)

    # the card's own lines name the class of a test image
    sample = dataset_dict["digits"](DataOptions(tmp_path, image_size=16))
    x, _ = real_batch(sample, "image", 3)
    pixels = (255 * x[2]).round().to(torch.uint8).permute(1, 2, 0).numpy()
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down, as phones store pictures
    Image.fromarray(pixels[::-1, ::-1].copy()).save(tmp_path / "photo.jpg", format="png", exif=exif)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    logits = onnx_session(tmp_path / "model.onnx").run(
        None, {"input": pixels.transpose(2, 0, 1)[None] / np.float32(255)}
    )
    assert done.stdout.strip() == config["classes"][int(logits[0].argmax())], done.stderr

    # the weights alone are a checkpoint like any other: it is evaluated to the run's number
    done = commands(
        "test_model.py", "--path", tmp_path / "model.safetensors", "--dataset", "digits", "--image_size", 16
    )
    assert f"top-1 {row['test_acc']:.2f} " in done.finished().out
    state = read_checkpoint(tmp_path / "model.safetensors")
    original = torch.load(simkd, weights_only=True)
    assert state.extra["proj"].keys() == original["proj"].keys() and state.state.keys() == original["model"].keys()

    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-50])
    with pytest.raises(UserError, match="truncated"):
        read_checkpoint(tmp_path / "model.safetensors")


def test_the_card_of_a_run_between_two_evaluations(simkd, tmp_path, capsys):
    """An unfinished run with --eval_freq: its last number is not of its last epoch."""
    folder = shutil.copytree(simkd.parent, tmp_path / "run")
    (folder / "parameters.json").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"stage": 0, "epoch": 2, "train_loss": 1.0}\n')
    exported(folder / "resnet8_last.pth", tmp_path / "out", capsys, "--forms", "safetensors")
    assert "| last evaluated epoch (1) of its run |" in squeezed((tmp_path / "out" / "README.md").read_text())


@pytest.mark.parametrize("distill", ["hsakd", "simkd"])
def test_auxiliary_heads_stay_behind(commands, teacher, tmp_path, capsys, distill):
    """Every form holds the plain network: its name, its weights alone, its numbers; also under a projector."""
    path, forms = tmp_path / "resnet8_aux_best.pth", ("--forms", "safetensors")
    if distill == "hsakd":
        torch.save(model_dict["resnet8_aux"](num_classes=10).state_dict(), path)
        forms = ()
    else:
        argv = ("--path_t", teacher, "--distill", "simkd", "--model_s", "resnet8_aux", "--skip_validation", *SHORT)
        commands.student(*argv, "--save_root", tmp_path).finished()
        (path,) = tmp_path.rglob("resnet8_aux_best.pth")
    out = tmp_path / "out"
    exported(path, out, capsys, *forms)
    config = json.loads((out / "config.json").read_text())
    file = read_checkpoint(out / "model.safetensors")
    assert (
        config["architecture"] == file.meta["arch"] == "resnet8" and "`resnet8` for" in (out / "README.md").read_text()
    )
    assert file.state.keys() == model_dict["resnet8"]().state_dict().keys()
    if distill == "simkd":
        assert "proj" in file.extra
        return
    plain = sum(p.numel() for p in model_dict["resnet8"](num_classes=10).parameters())
    assert config["parameters"] == plain
    assert not [k for k in torch.export.load(out / "model.pt2").state_dict if "auxiliary" in k]
    assert (out / "model.onnx").stat().st_size < 6 * plain  # four bytes a weight, and the graph


def test_layers_inside_a_student_go_with_it(commands, teacher, tmp_path, capsys):
    argv = ("--path_t", teacher, "--distill", "norm", "--norm_copies", 2, "--skip_validation", *SHORT)
    commands.student(*argv, "--save_root", tmp_path).finished()
    (path,) = tmp_path.rglob("resnet8_best.pth")
    out = tmp_path / "out"
    assert exported(path, out, capsys, "--forms", "safetensors", "export").count("agree to") == 2
    row = json.loads((path.parent / "metrics.jsonl").read_text().splitlines()[-1])
    for file in (path, out / "model.safetensors"):
        done = commands("test_model.py", "--path", file, "--dataset", "digits", "--image_size", 16)
        assert f"top-1 {row['test_acc']:.2f} " in done.finished().out


def test_a_wrong_file_is_noticed(simkd, tmp_path, capsys, monkeypatch):
    import scripts.export_student as module

    real = module.write_safetensors

    def spoilt(network, config, out):
        network.checkpoint.state["conv1.weight"] = network.checkpoint.state["conv1.weight"] * (1 + 100 * TOLERANCE)
        return real(network, config, out)

    monkeypatch.setattr(module, "write_safetensors", spoilt)
    with pytest.raises(UserError, match="is wrong: a logit differs by"):
        exported(simkd, tmp_path, capsys, "--forms", "safetensors")


def test_pushed_to_a_hub(simkd, tmp_path, capsys, monkeypatch):
    sent = []
    hub = types.SimpleNamespace(
        create_repo=lambda name, exist_ok: None, upload_folder=lambda **what: sent.append(what) or "hub://a/b"
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert "pushed to hub://a/b" in exported(simkd, tmp_path, capsys, "--forms", "safetensors", "--push_to", "a/b")
    assert sent[0]["repo_id"] == "a/b" and sent[0]["folder_path"] == str(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="needs the package huggingface_hub"):
        exported(simkd, tmp_path, capsys, "--forms", "safetensors", "--push_to", "a/b")


def test_a_student_of_a_sensor(commands, tmp_path, capsys):
    """Its data is read as it was in training: which sensor, how many samples, which people."""
    root = utd(tmp_path / "utd")
    argv = ("--dataset", "utd_mhad", "--data_folder", root, "--modality", "gyro", "--window", 32, "--batch_size", 6)
    argv += ("--model", "sensor_cnn", "--epochs", 1, "--max_steps", 1, "--tb_backend", "none", "--save_root", tmp_path)
    commands("train_teacher.py", *argv).finished()
    (path,) = tmp_path.rglob("sensor_cnn_best.pth")
    out = tmp_path / "out"
    data = ["--dataset", "utd_mhad", "--data_folder", str(root), "--images", "12"]
    main(["--path", str(path), *data, "--out", str(out), "--forms", "safetensors"])
    assert capsys.readouterr().out.count("agree to") == 1
    config = json.loads((out / "config.json").read_text())
    assert (config["input"], config["input_shape"], config["measured"]["images"]) == ("sensor", [3, 32], 12)
    row = json.loads((path.parent / "metrics.jsonl").read_text().splitlines()[-1])
    assert config["measured"]["accuracy"] == pytest.approx(row["test_acc"])


def test_frames_are_normalised_by_channel():
    """Frames of a clip come before their channels."""
    spec = model_dict["trn:resnet8"].fitted({"video": (2, 3, 32, 32)})
    net = TappedNet(spec(num_classes=5), spec).eval()
    clips = torch.rand(2, 2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(Plain(net).eval()(clips), net({"video": clips})["logits"])


def assert_exports(model, shape, tmp_path, forms):
    """The written file gives the network's logits for another number of samples than it was traced with."""
    model, x = Plain(TappedNet(model, ModelSpec("x", type(model), {}, (), "head"))).eval(), torch.rand(3, *shape)
    with torch.no_grad():
        want = model(x)
    for form in forms:
        path = tmp_path / f"model.{form}"
        if form == "pt2":
            torch.export.save(exported_program(model, x[:2].clone()), path)
        else:
            write_onnx(model, x[:2].clone(), path, {})
        gap = (reader_of(path, None)(x) - want).abs().max()
        assert gap <= TOLERANCE * max(1.0, want.abs().max()), (form, gap)


FEW = ("vgg8", "ShuffleV2", "sensor_cnn")  # resnet8 is exported above


@pytest.mark.parametrize("name", FEW)
def test_a_few_networks_export(name, tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr("models.shufflenetv2.BLOCKS", (1, 1, 1))
    spec = model_dict[name]
    assert_exports(spec(num_classes=10), spec.input_shape, tmp_path, ("pt2",))


def test_a_transformer_exports(tmp_path):
    torch.manual_seed(0)
    assert_exports(VisionTransformer(32, 8, 24, 1, 3, num_classes=4), (3, 32, 32), tmp_path, ("pt2", "onnx"))


def test_a_transformer_of_torchvision_exports(tmp_path):
    from torchvision import models

    torch.manual_seed(0)
    model = any_size(
        models.VisionTransformer(32, 16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=4)
    )
    assert_exports(model, (3, 32, 32), tmp_path, ("onnx",))  # which traces it as pt2 does


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*model_dict, "torchvision:vit_b_32", "torchvision:resnet18"} - set(FEW)))
def test_every_network_exports(name, tmp_path):
    torch.manual_seed(0)
    spec = model_dict[name]
    spec = spec.fitted({spec.input: (2, *spec.input_shape[1:]) if spec.input == "video" else spec.input_shape})
    assert_exports(spec(num_classes=10), spec.input_shape, tmp_path, ("pt2",))


def test_the_bound_grows_with_the_logits(simkd, tmp_path, capsys, monkeypatch):
    """Rounding of large logits is large: what counts is the difference relative to them."""
    import scripts.export_student as module

    content = torch.load(simkd, weights_only=True)
    content["head"] = {k: v * 1e4 for k, v in content["head"].items()}
    torch.save(content, tmp_path / "resnet8_best.pth")
    real = module.reader_of
    for error, refused in ((1e-5, False), (1e-3, True)):
        monkeypatch.setattr(module, "reader_of", lambda *a, e=error: lambda x: real(*a)(x) * (1 + e))
        if refused:
            with pytest.raises(UserError, match="is wrong: a logit differs by"):
                exported(tmp_path / "resnet8_best.pth", tmp_path / "out", capsys, "--forms", "safetensors")
        else:
            exported(tmp_path / "resnet8_best.pth", tmp_path / "out", capsys, "--forms", "safetensors")
