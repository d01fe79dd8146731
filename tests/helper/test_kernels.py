"""Compiled, folded, laid out otherwise: the same numbers within rounding, and checkpoints that know nothing of it."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.protocols import UserError
from core.taps import TappedNet
from distiller_zoo import method_dict
from helper.machine import kernels as under_test
from helper.machine.kernels import (
    PARTS,
    PLAIN,
    KernelConfig,
    Kernels,
    compiler_fault,
    folded,
    pick_kernels,
    to_device,
    with_cast_weights,
)
from helper.networks.teacher_sources import LiveTeacher
from helper.training.optim import OptimConfig, optimizer
from helper.training.stages import StagePlan, build_stages
from helper.training.step import StepSetup
from models import model_dict
from tests.support.contract import PROGRESS, make_step
from tests.support.toys import ToyData, cnn, network

CPU = torch.device("cpu")
TRACED = Kernels("default", PARTS, backend="aot_eager")  # what torch.compile does, without a C++ compiler
TOLERANCE = 1e-5  # relative, of the loss of float32 steps from one state
FLAGS = KernelConfig()


def toy_step(method="kd", kernels=PLAIN, batch_size=8, **kwargs):
    kind = method_dict[method]
    return make_step(
        kind, kind.Config(), cnn(4), lambda: network(cnn(8)), ToyData(), batch_size, kernels=kernels, **kwargs
    )


def losses(step, batches):
    step.train()
    return [float(step(batch, dataclasses.replace(PROGRESS, step=i)).loss) for i, batch in enumerate(batches)]


def batches(count, size=8):
    return [ToyData().batch(size, seed=i) for i in range(count)]


@pytest.mark.parametrize(
    "method", ["simkd", "srrl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("kd", "dkd"))]
)
def test_compiled_equals_eager(method):
    eager, compiled = toy_step(method), toy_step(method, TRACED)
    assert losses(compiled, batches(4)) == pytest.approx(losses(eager, batches(4)), rel=TOLERANCE)
    a, b = eager.state_dict(), compiled.state_dict()
    assert a["trained"].keys() == b["trained"].keys()
    torch.testing.assert_close(b["trained"], a["trained"], rtol=1e-4, atol=1e-5)


def test_a_run_may_change_between_compiled_and_eager():
    compiled, eager, again = toy_step("simkd", TRACED), toy_step("simkd"), toy_step("simkd", TRACED)
    losses(compiled, batches(2))
    losses(eager, batches(1))  # somewhere else before it takes over
    eager.load_state_dict(copy.deepcopy(compiled.state_dict()))
    again.load_state_dict(copy.deepcopy(eager.state_dict()))
    later = batches(4)[2:]
    assert losses(again, later) == pytest.approx(losses(eager, later), rel=TOLERANCE)


def test_the_compiler_itself_agrees_too():
    if (reason := compiler_fault(CPU)) is not None:
        pytest.skip(f"needs a C++ compiler ({reason})")
    kernels = Kernels("default", ("teacher",))
    eager, compiled = toy_step(), toy_step(kernels=kernels)
    assert losses(compiled, batches(2)) == pytest.approx(losses(eager, batches(2)), rel=TOLERANCE)
    (batch,), teacher = batches(1), compiled.teacher
    before = teacher.features(batch, ())["logits"]
    next(teacher.net.parameters()).mul_(2)
    assert torch.equal(teacher.features(batch, ())["logits"], before), "the compiled teacher's weights are no constants"


def test_only_whole_batches_are_compiled(monkeypatch):
    step = toy_step(kernels=TRACED)
    fast, seen = step._compiled_root.fast, []
    monkeypatch.setattr(step._compiled_root, "fast", lambda *args: (seen.append(1), fast(*args))[1])
    losses(step, [*batches(2), ToyData().batch(3)])
    assert len(seen) == 2


def broken(*args, **kwargs):
    from torch._dynamo.exc import BackendCompilerFailed

    def call(*args):
        raise BackendCompilerFailed(lambda: None, RuntimeError("no such tool"), None)

    return call


def test_a_compiler_that_fails_is_an_error_where_it_was_asked_for(monkeypatch):
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match="--compile none") as error:
        losses(toy_step(kernels=TRACED), batches(1))
    assert len(str(error.value).splitlines()) == 1
    forgiving = toy_step(kernels=dataclasses.replace(TRACED, strict=False))
    assert losses(forgiving, batches(2)) == losses(toy_step(), batches(2))


def test_a_missing_compiler_is_noticed_before_training():
    import torch._inductor.config as config

    under_test.compiler_fault.cache_clear()
    torch._dynamo.reset()

    try:
        with (
            config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}),
            pytest.raises(UserError, match="--compile none") as error,
        ):
            pick_kernels(KernelConfig(compile="default"), CPU, 10)
        assert len(str(error.value).splitlines()) == 1
    finally:
        under_test.compiler_fault.cache_clear()


def test_automatic_choices(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(under_test, "compiler_fault", lambda device: None)
    plain = Kernels(strict=False, depthwise_fp32=True)
    assert pick_kernels(FLAGS, CPU, 4999)[0] == pick_kernels(FLAGS, CPU, 10**6, live_teacher=False)[0] == plain
    assert pick_kernels(FLAGS, CPU, 5000) == (dataclasses.replace(plain, compile="default", parts=("teacher",)), [])
    assert pick_kernels(KernelConfig(compile_parts=["student"]), CPU, 5000, live_teacher=False)[0].parts == ("student",)
    assert pick_kernels(FLAGS, torch.device("mps"), 10**6)[0].compile is None
    assert pick_kernels(FLAGS, cuda, 10**6)[0] == Kernels("default", PARTS, strict=False)
    assert pick_kernels(FLAGS, cuda, 10)[0].compile is None
    monkeypatch.setattr(under_test, "compiler_fault", lambda device: "no ptxas")
    chosen, (notice,) = pick_kernels(FLAGS, cuda, 10**6)
    assert chosen.compile is None and "no ptxas" in notice
    off = KernelConfig(compile="none", channels_last="off", fused_optimizer="off")
    assert pick_kernels(off, cuda, 10**6, fold_teacher=True)[0] == Kernels(None, (), False, False, True)
    asked = [pick_kernels(KernelConfig(depthwise_fp32=x), d, 1)[0] for x, d in (("off", CPU), ("on", cuda))]
    assert [kernels.depthwise_fp32 for kernels in asked] == [False, True]


def test_depthwise_convolutions_stay_in_float32_under_autocast():
    torch.manual_seed(0)
    spec, images = model_dict["MobileNetV2"], {"image": torch.rand(2, 3, 32, 32)}
    model = spec(num_classes=5).eval()
    plain_model = copy.deepcopy(model)
    plain = TappedNet(plain_model, spec)(images)["logits"]
    net = to_device(TappedNet(model, spec), CPU, Kernels(depthwise_fp32=True, channels_last=False)).eval()
    assert torch.equal(net(images)["logits"], plain)  # without autocast nothing changes

    seen = {}
    depthwise = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    hooks = [m.register_forward_hook(lambda m, x, output: seen.update({m: (*x, output)})) for m in depthwise]
    with torch.autocast("cpu", torch.bfloat16):
        net(images)
        for hook in hooks:
            hook.remove()
        with torch.no_grad():  # where the forward pass is all there is, bf16 is not slower
            logits = net(images)["logits"]
            assert torch.equal(logits, TappedNet(plain_model, spec)(images)["logits"])
            assert torch.equal(with_cast_weights(net, images, torch.bfloat16)(images)["logits"], logits)
    assert len(seen) == len(depthwise) == 17
    for module, (x, output) in seen.items():
        assert x.dtype == output.dtype == torch.bfloat16
        exact = F.conv2d(x.float(), module.weight, None, module.stride, module.padding, groups=module.groups)
        assert torch.equal(output, exact.bfloat16())

    twin = copy.deepcopy(net)  # an average of the weights, or a faster teacher
    nn.init.zeros_(next(m for m in twin.modules() if isinstance(m, nn.Conv2d) and m.groups > 1).weight)
    assert not torch.equal(twin(images)["logits"], plain) and torch.equal(net(images)["logits"], plain)


def test_memory_order_and_optimiser_kernel_change_nothing_but_rounding():
    plain = losses(toy_step(), batches(3))
    step = toy_step(kernels=Kernels(channels_last=False))
    assert losses(step, batches(3)) == pytest.approx(plain, rel=1e-5)
    net = to_device(TappedNet(cnn(4)(num_classes=5), cnn(4), ["stage1"]), CPU, Kernels(channels_last=False))
    images = torch.rand(2, 3, 16, 16).to(memory_format=torch.channels_last)
    assert net({"image": images})["stage1"].is_contiguous()

    def trained(fused):
        torch.manual_seed(0)
        kd, data = method_dict["kd"], ToyData()
        make = optimizer(OptimConfig(momentum=0.9, weight_decay=0.0005), 0.1, fused)
        (stage,) = build_stages(
            kd,
            kd.Config(),
            cnn(4),
            network(cnn(8)),
            data,
            StepSetup(make, device=CPU),
            StagePlan(batch_size=8, epochs=1),
        )
        return losses(stage.step, batches(3)), stage.step.optimizers["main"].defaults["fused"]

    (a, fused), (b, unfused) = trained(True), trained(False)
    assert fused and not unfused and a == pytest.approx(b, rel=1e-5)


# ---- the teacher's copy


def tapped(name="resnet8", want=("stage3", "pooled")):
    torch.manual_seed(0)
    spec = model_dict[name]
    net = TappedNet(spec(num_classes=10), spec, want).train()
    for i in range(2):  # batch norms with statistics of their own
        net({"image": torch.rand(8, 3, 32, 32) * (i + 1)})
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1"])
def test_folding_keeps_the_function(name):
    net = tapped(name)
    inputs = {"image": torch.rand(4, 3, 32, 32)}
    copied = folded(net, inputs)
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in n.modules()) for n in (net, copied)]
    assert norms[1] < norms[0]
    assert name != "resnet8" or norms[1] == 0
    want, got = net(inputs), copied(inputs)
    for key in want:
        torch.testing.assert_close(got[key], want[key], rtol=1e-4, atol=1e-4 * float(want[key].abs().max()))


class Forked(nn.Module):
    """The convolution's output is read by more than its batch norm."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, num_classes)
        self.bn.running_mean.fill_(3.0)

    def forward(self, x):
        y = self.conv(x)
        return self.fc((self.bn(y) + y).mean((2, 3)))


def test_a_network_that_cannot_be_folded_is_refused():
    spec = dataclasses.replace(cnn(4), build=lambda num_classes: Forked(num_classes), taps={}, feats=(), name="forked")
    net = TappedNet(spec(num_classes=5), spec).eval()
    with pytest.raises(UserError, match="forked"):
        folded(net, {"image": torch.rand(2, 3, 16, 16)})


def test_cast_weights_are_bit_identical_under_autocast():
    net, inputs = tapped(), {"image": torch.rand(4, 3, 32, 32)}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cast = with_cast_weights(net, inputs, torch.bfloat16)
        assert cast is not net and cast.model.conv1.weight.dtype == torch.bfloat16
        want, got = net(inputs), cast(inputs)
    assert all(torch.equal(want[k], got[k]) for k in want)
    assert net.model.conv1.weight.dtype == torch.float32


class Standardised(nn.Module):
    """Reads its convolution's weight in float32, which a cast would round."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, num_classes)

    def forward(self, x):
        scale = self.conv.weight.float().std()
        return self.fc(self.conv(x).float().mean((2, 3)) / scale)


def test_weights_that_are_read_in_another_way_are_not_cast():
    spec = dataclasses.replace(cnn(4), build=lambda num_classes: Standardised(num_classes), taps={}, feats=())
    net = TappedNet(spec(num_classes=5), spec).eval()
    inputs = {"image": torch.rand(2, 3, 16, 16)}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        copied = with_cast_weights(net, inputs, torch.bfloat16)
        assert all(torch.equal(net(inputs)[k], copied(inputs)[k]) for k in ("logits",))


def test_the_teacher_runs_its_copy_and_answers_the_same():
    net, batch = tapped(), dataclasses.replace(ToyData(image=(3, 32, 32)).batch(), views=1)
    plain = LiveTeacher(net)
    fold = LiveTeacher(net, kernels=Kernels(fold_teacher=True))
    low = LiveTeacher(net, torch.bfloat16)
    want = plain.features(batch, ("stage3",))
    torch.testing.assert_close(fold.features(batch, ("stage3",)), want, rtol=1e-3, atol=1e-3)
    assert low.features(batch, ("stage3",))["stage3"].dtype == torch.bfloat16
    assert plain.features(batch, ())["logits"].data_ptr() != want["logits"].data_ptr()


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "method, mode", [("kd", "default"), ("kd", "reduce-overhead"), ("simkd", "reduce-overhead"), ("crd", "default")]
)
def test_compiled_equals_eager_on_a_gpu(method, mode):
    device = torch.device("cuda")
    teacher = network(cnn(8))

    def trained(kernels):
        torch.manual_seed(0)
        kind, data = method_dict[method], ToyData()
        config = kind.Config(nce_k=8, feat_dim=4) if method == "crd" else kind.Config()
        *_, stage = build_stages(
            kind,
            config,
            cnn(4),
            copy.deepcopy(teacher),
            data,
            StepSetup(optimizer(OptimConfig(momentum=0.9, weight_decay=0.0005), 0.1), device=device, kernels=kernels),
            StagePlan(batch_size=8, epochs=1),
        )
        moved = [
            dataclasses.replace(
                b,
                inputs={k: x.to(device) for k, x in b.inputs.items()},
                target=b.target.to(device),
                index=b.index.to(device),
            )
            for b in batches(6)
        ]
        return losses(stage.step, moved)

    assert trained(Kernels(mode, PARTS)) == pytest.approx(trained(PLAIN), rel=1e-3)
