"""int8: what training rounds, what onnxruntime makes of a graph, and what is said of it."""

import copy
import importlib.util
import json

import numpy as np
import pytest
import torch
from torch import nn

from core.protocols import UserError
from core.taps import TappedNet
from helper.machine.kernels import Kernels, to_device
from helper.training.fake_quant import ROUNDING, int8_input, int8_weight, make_rounding
from models import load_student, model_dict
from tests.support.commands import squeezed

pytestmark = pytest.mark.usefixtures("quick_export")

IMAGES = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_weights_lie_on_a_grid_for_each_channel():
    w = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    q = int8_weight(w)
    scale = w.detach().abs().flatten(1).amax(1) / 127
    steps = q.detach() / scale[:, None, None, None]
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
    assert steps.abs().max() <= 127.001 and ((q - w).abs().flatten(1).amax(1) <= scale / 2 * 1.001).all()
    q.sum().backward()
    torch.testing.assert_close(w.grad, torch.ones_like(w))
    # a batch norm behind the layer scales channels: rounding before or after it is folded is the same
    gain = torch.tensor([2.0, -0.3, 1e-3, 50.0])[:, None, None, None]
    torch.testing.assert_close(int8_weight(w * gain), int8_weight(w) * gain)
    assert not int8_weight(torch.zeros(2, 3)).any()


def test_inputs_have_256_values_and_keep_zero():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1)).clamp(min=-0.5).requires_grad_()
    q = int8_input(x)
    scale = (x.max() - x.min()).item() / 255
    assert len((q / scale).round().unique()) <= 256 and (q - x).abs().max() <= 1.01 * scale
    assert int8_input(torch.tensor([0.0, 3.0, 1.0]))[0] == 0
    torch.testing.assert_close(int8_input(torch.full((3,), 2.0)), torch.full((3,), 2.0))
    q.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))
    assert int8_input(torch.zeros(3)).eq(0).all()


def test_layers_round_in_training_alone():
    torch.manual_seed(0)
    spec = model_dict["resnet8"]
    plain = TappedNet(spec(num_classes=10), spec, ("stage2", "pooled"))
    rounding = copy.deepcopy(plain)
    for _ in range(2):  # a second time changes nothing
        make_rounding([rounding.model])
        layers = [type(m) for m in rounding.model.modules() if type(m) in ROUNDING.values()]
        assert len(layers) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in plain.modules()) == 10
    assert type(rounding.model.conv1) is ROUNDING[torch.nn.Conv2d]
    assert plain.state_dict().keys() == rounding.state_dict().keys()
    batch = {"image": IMAGES}
    for mode in (False, True):
        a, b = (net.train(mode)(batch) for net in (plain, rounding))
        gaps = {k: float((a[k] - b[k]).detach().abs().mean() / a[k].detach().abs().mean()) for k in a}
        assert a.keys() == {"logits", "stage2", "pooled"}
        assert all(0 < gap < 0.1 for gap in gaps.values()) if mode else not any(gaps.values()), gaps
    rounding(batch)["logits"].sum().backward()
    assert all(p.grad is not None for p in rounding.parameters())


def test_depthwise_layers_round_also_in_float32():
    """A CPU keeps them in float32, which must not skip the rounding."""
    spec, batch, logits = model_dict["MobileNetV2"], {"image": IMAGES[:4]}, []
    for fp32 in (False, True):
        torch.manual_seed(0)
        net = TappedNet(spec(num_classes=10), spec)
        net = to_device(net, torch.device("cpu"), Kernels(depthwise_fp32=fp32))
        make_rounding([net.model])
        logits.append(net.train()(batch)["logits"])
    assert torch.equal(*logits)


@pytest.fixture(scope="module")
def onnx():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"needs {package}, of requirements-extra.txt")
    import onnx

    return onnx


def test_training_rounds_as_the_graph_does(onnx, tmp_path):
    """Both differ from the float network by rounding, and by no more; also on CPUs whose int8 instructions overflow."""
    from helper.deploy.export import onnx_session, write_onnx
    from helper.deploy.quantize import quantize_onnx

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 5))
    write_onnx(net.eval(), IMAGES[:2], tmp_path / "a.onnx", {})
    said = quantize_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx", [IMAGES])
    assert said.startswith("3 of 3 convolutions and matrix products are in int8")
    int8 = torch.from_numpy(onnx_session(tmp_path / "b.onnx").run(None, {"input": IMAGES.numpy()})[0])
    with torch.no_grad():
        plain = net(IMAGES)
        make_rounding([net])
        rounding = net.train()(IMAGES)
    spread = float(plain.std())
    for one, other in ((int8, plain), (rounding, plain), (int8, rounding)):
        assert 0 < (one - other).abs().mean() < 0.04 * spread


def test_a_program_in_int8(tmp_path):
    from helper.deploy.quantize import load_program, quantize_program

    pytest.importorskip("torchao", reason="needs torchao, of requirements-extra.txt")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1568, 5)).eval()
    with torch.no_grad():
        plain = net(IMAGES)
    program = tmp_path / "model_int8.pt2"
    assert quantize_program(net, [IMAGES], program) is None
    int8 = load_program(program)
    torch.testing.assert_close(int8(IMAGES[:1]), int8(IMAGES)[:1])  # of any batch size
    assert 0 < (int8(IMAGES) - plain).abs().mean() < 0.05 * plain.std()
    fault = quantize_program(nn.Embedding(3, 5), [torch.rand(2, 3)], tmp_path / "b.pt2")
    assert fault.startswith("torchao cannot quantise this network (") and not (tmp_path / "b.pt2").exists()


@pytest.mark.slow  # torch.compile takes half a minute
def test_sums_of_a_compiled_program_do_not_overflow(tmp_path):
    """Every product is the largest there is."""
    from helper.deploy.quantize import compiled, load_program, quantize_program

    pytest.importorskip("torchao", reason="needs torchao, of requirements-extra.txt")
    net, x = nn.Conv2d(8, 8, 3), torch.ones(2, 8, 6, 6)
    nn.init.constant_(net.weight, 0.1)
    assert quantize_program(net.eval(), [x], tmp_path / "model_int8.pt2") is None
    program = load_program(tmp_path / "model_int8.pt2")
    torch.testing.assert_close(compiled(program)(x), program(x), rtol=0.01, atol=0)


def test_what_cannot_be_quantised_is_one_sentence(onnx, tmp_path):
    from helper.deploy.quantize import quantize_onnx

    one = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, 4]) for name in ("input", "logits")]
    node = onnx.helper.make_node("Erf", ["input"], ["logits"])
    graph = onnx.helper.make_graph([node], "g", one[:1], one[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(UserError, match="no operator that can be quantised to int8, only Erf: leave --int8 out"):
        quantize_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx", [torch.rand(2, 4)])
    with pytest.raises(UserError, match="cannot be quantised to int8 .*: leave --int8 out"):
        quantize_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx", [torch.rand(2, 3, 4)])


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_export_in_int8(onnx, tmp_path, capsys, monkeypatch, whole):
    """Every precision side by side, in config.json and in the model card, and predict.py reads the graph.

    whole: with torchao's program, which is written and read above, and its kernels.
    """
    from helper.deploy.predictor import open_predictor
    from scripts.export_student import main

    torch.manual_seed(0)
    meta = {"arch": "resnet8", "num_classes": 10, "dataset": "digits", "shapes": {"image": [3, 16, 16]}}
    path, out = tmp_path / "resnet8_best.pth", tmp_path / "out"
    torch.save({"model": model_dict["resnet8"](num_classes=10).state_dict(), "meta": meta}, path)
    argv = ["--path", str(path), "--dataset", "digits", "--images", "20", "--out", str(out), "--forms", "onnx"]
    if not whole:
        monkeypatch.setattr("scripts.export_student.quantize_program", lambda *_: None)
        monkeypatch.setattr("scripts.export_student.compiler_fault", lambda device: "no compiler")
    main([*argv, "--int8", "--calibration", "64"])
    said = capsys.readouterr().out
    assert "10 of 10 convolutions and matrix products are in int8" in said
    known = whole and importlib.util.find_spec("torchao") is not None
    assert whole or "not measured: torch.compile does not work on this machine (no compiler)" in said
    assert known or not whole or "model_int8.pt2 is left out: it needs the package torchao" in said
    config = json.loads((out / "config.json").read_text())["int8"]
    rows = {row["precision"]: row for row in config["rows"]}
    measured = ["float32, onnxruntime", "int8, onnxruntime", "float32, torch", "bf16, torch"]
    assert list(rows) == [*measured, *["int8, torch.compile"] * known]
    if known:
        assert rows["int8, torch.compile"]["accuracy"] == pytest.approx(rows["float32, torch"]["accuracy"], abs=3)
    assert config["calibration"] == 64 and rows["float32, onnxruntime"]["ratio"] == 1
    assert rows["float32, onnxruntime"]["accuracy"] == pytest.approx(rows["float32, torch"]["accuracy"], abs=0.3)
    assert rows["int8, onnxruntime"]["bytes"] < 0.6 * rows["float32, onnxruntime"]["bytes"]
    card = squeezed((out / "README.md").read_text())
    for name, row in rows.items():
        assert f"| {name} | {row['accuracy']:.2f} % |" in card and f"| {row['ratio']:.2f} x |" in card
    expected = load_student(path)(IMAGES).detach()
    for name in ("model_int8.onnx", "model_int8.pt2")[: 1 + known]:
        gap = (open_predictor(out / name).logits(IMAGES) - expected).abs().mean()
        assert float(gap) < 0.1 * float(expected.std()), name
    with pytest.raises(UserError, match="add onnx to --forms"):
        main([*argv[:-1], "safetensors", "--int8"])
    with pytest.raises(UserError, match="--calibration 0"):
        main([*argv, "--int8", "--calibration", "0"])


def test_a_run_continues_a_student(commands, teacher, tmp_path):
    """--quantize int8 with a teacher; the checkpoint is an ordinary one, and moved away from where it started."""
    argv = ("--path_t", teacher, "--distill", "kd", "--skip_validation", "--pretrained", teacher, "--quantize", "int8")
    argv += ("--epochs", 1, "--max_steps", 2, "--learning_rate", 0.001, "--tb_backend", "none", "--save_root", tmp_path)
    commands.student(*argv).finished()
    (path,) = tmp_path.rglob("resnet8_best.pth")
    assert json.loads((path.parent / "args.json").read_text())["settings"]["quantize"] == "int8"
    gap = (load_student(path)(IMAGES) - load_student(teacher)(IMAGES)).abs().mean().item()
    assert 0 < gap < 1 and np.isfinite(gap)
