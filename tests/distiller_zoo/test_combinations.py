"""Methods among others: classifiers reused on other networks, combinations, frames, short batches, mixed labels."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.protocols import Context, Progress, UserError
from core.taps import TappedNet, probe
from distiller_zoo import method_dict
from distiller_zoo._combined import Combined, CombinedConfig
from distiller_zoo._math import kl, labels_of
from distiller_zoo._stages import refuse_single_samples
from helper.machine.distributed import sync_batch_norm
from helper.training.stages import smallest_batch
from models import model_dict
from tests.support.cases import combined, config
from tests.support.contract import PROGRESS, make_step
from tests.support.method_context import batch_of, build, side
from tests.support.toys import B, ToyData, cnn, network

SIDE = side("net", [(4, 8, 8), (8, 4, 4)], 8, 5)


def probed(name, *methods, size=32):
    """A network with random weights and running statistics, and what a distiller is told of it."""
    torch.manual_seed(0)
    model, spec = model_dict[name](num_classes=5), model_dict[name]
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2), module.bias.data.normal_()
    taps = {t for m in methods for t in method_dict[m].needs(config(m), spec, spec).teacher}
    net = TappedNet(model, spec, taps).eval()
    return net, probe(net, {"image": (3, size, size)})


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "ShuffleV1"])
def test_the_map_that_is_imitated_is_what_the_classifier_reads(name):
    net, teacher = probed(name, "simkd", "cat_kd")
    assert teacher.pools_last
    method = build("simkd", probed("resnet8", "simkd")[1], teacher)
    with torch.no_grad():
        features = net({"image": torch.rand(2, 3, 32, 32)})
        deployed = method.deployment()
        again = deployed.teacher_head(deployed.pool(features[method.last_t]))
        assert torch.allclose(again, features["logits"], atol=1e-5)
    if name.startswith("wrn"):  # the projector ends in a ReLU: what it imitates must not be negative
        assert features[method.last_t].min() >= 0


def test_a_deployed_student_of_a_wide_resnet_is_read_and_teaches(commands, tmp_path):
    """Also from files that were written when its last stage was imitated."""
    torch.manual_seed(0)
    state = model_dict["wrn_16_1"](num_classes=10).state_dict()
    torch.save({"model": state, "meta": {"arch": "wrn_16_1", "num_classes": 10}}, tmp_path / "t.pth")
    argv = ("--distill", "simkd", "--skip_validation", "--tb_backend", "none", "--max_steps", 2, "--image_size", 16)
    run = ("--model_s", "wrn_16_1", "--path_t", tmp_path / "t.pth", "--epochs", 1, "--save_root", tmp_path)
    commands.student(*argv, *run).finished()
    (best,) = tmp_path.glob("students/models/*/wrn_16_1_best.pth")
    content = torch.load(best, weights_only=True)
    content["meta"]["shapes_t"]["stage3"] = content["meta"]["shapes_t"].pop("classified")
    torch.save(content, tmp_path / "old.pth")
    test = ("--dataset", "digits", "--image_size", 16)
    for path in (best, tmp_path / "old.pth"):
        said = commands("test_model.py", "--path", path, *test, cwd=tmp_path).finished().out
        assert f"top-1 {content['best_acc']:.2f}" in said
    for method in ("simkd", "cat_kd"):
        commands.student(*argv, "--distill", method, "--path_t", tmp_path / "old.pth", "--dry_run").finished()


@pytest.mark.parametrize("name", ["torchvision:densenet121", "torchvision:convnext_tiny"])
@pytest.mark.parametrize("method", ["simkd", "cat_kd"])
def test_a_classifier_that_does_more_than_pool_is_refused(method, name):
    _, teacher = probed(name, method, size=64)
    with pytest.raises(UserError, match=f"{method} applies the classifier of {name} .* another function of it"):
        build(method, probed("resnet8", method)[1], teacher)


def context(*sides, **more):
    return Context(5, torch.arange(50) % 5, 8, *sides, **more)


def test_views_count_in_a_combination_as_they_do_alone():
    """hsakd's rotations are weighed in the logit KL, whoever stands beside it."""
    hsakd, spec = method_dict["hsakd"], model_dict["resnet8_aux"]
    cfg = config("hsakd", rotations=2)
    wanted = hsakd.needs(cfg, spec, spec)
    sides = [
        probe(TappedNet(spec(num_classes=5), spec, taps), {"image": (3, 16, 16)})
        for taps in (wanted.student, wanted.teacher)
    ]
    members = ((hsakd, cfg), (method_dict["vanilla"], config("vanilla")))
    methods = [hsakd(cfg, context(*sides)), Combined(CombinedConfig(members=members, kd_T=cfg.kd_T), context(*sides))]
    z_s, z_t = torch.randn(2, 8, 5)
    batch = batch_of(torch.arange(4), views=2)
    alone, beside = (m.common_terms({"logits": z_s}, {"logits": z_t}, batch, {"div": 1.0})["div"] for m in methods)
    upright, turned = (kl(z_s[v::2], z_t[v::2], cfg.kd_T) for v in (0, 1))
    assert alone == beside and torch.allclose(alone, upright / 4 + turned * 3 / 4)


def test_the_weight_of_the_kl_rises_with_kdpp_in_a_combination_too():
    side_of = side("net", [], 8, 5)
    method = Combined(combined("kdpp", "vanilla", div=3.0), context(side_of, side_of))
    weights = [method.weights(Progress(epoch, 240)) for epoch in (1, 11, 21, 240)]
    assert [w["div"] for w in weights] == [0, 1.5, 3, 3] and {w["cls"] for w in weights} == {1.0}


def test_what_cannot_be_combined():
    for names in (("dml", "vanilla"), ("dml", "hsakd_online")):
        with pytest.raises(UserError, match="dml.* trains two peers and cannot be combined"):
            Combined.check(combined(*names))
    image = torch.rand(2, 3, 8, 8)
    seen_by_the_teacher = dataclasses.replace(
        batch_of(torch.zeros(2)), inputs={"image": image}, teacher_inputs={"image": image}
    )
    with pytest.raises(UserError, match="mlkd also adds .* put it first"):
        build("mlkd", SIDE, SIDE, views=2).prepare(seen_by_the_teacher)


def test_frames_are_rows_of_one_view():
    """mlkd without a strong view compares all frames of the clips alike."""
    method = build("mlkd", SIDE, SIDE, views=1)
    z_s, z_t = torch.randn(2, 6, 5)
    frames, flat = batch_of(torch.arange(2), views=3), batch_of(torch.arange(6) % 5)
    found, wanted = (method.terms({"logits": z_s}, {"logits": z_t}, b, Progress()) for b in (frames, flat))
    assert found.keys() == {"mlkd"} and found["mlkd"] == wanted["mlkd"]
    with pytest.raises(UserError, match="ofa_kd's exits score clips"):
        method_dict["ofa_kd"].needs(config("ofa_kd", frame_logits=True), SIDE.spec, SIDE.spec)


def test_mixed_images_have_the_label_of_the_larger_share():
    soft = torch.tensor([[0.3, 0.7, 0.0], [0.6, 0.0, 0.4]])
    batch = dataclasses.replace(batch_of(torch.tensor([0, 0]), views=2), soft_target=soft)
    assert labels_of(batch).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    "samples, batch_size, accumulate, processes, full, smallest",
    [
        (50000, 64, 1, 1, False, 16),
        (50000, 64, 16, 1, False, 1),  # the last 16, in 16 parts
        (50000, 64, 16, 1, True, 4),
        (50000, 4, 1, 16, False, 1),  # 16 left over for 16 processes
        (50000, 64, 4, 1, False, 4),
        (64, 10, 4, 1, False, 1),  # 3, 3, 3, 1
        (65, 64, 1, 1, False, 1),
        (64, 64, 1, 1, False, 64),
    ],
)
def test_the_smallest_forward_of_an_epoch(samples, batch_size, accumulate, processes, full, smallest):
    assert smallest_batch(samples, batch_size, accumulate, processes, full) == smallest
    parts = [
        part
        for n in (batch_size, samples % (batch_size * processes) // processes)
        if n and (n == batch_size or not full)
        for part in batch_of(torch.zeros(n)).split(accumulate)
    ]
    assert min(len(part) for part in parts) == smallest
    ctx = context(SIDE, SIDE, smallest_batch=smallest)
    if smallest > 1:
        refuse_single_samples(ctx, "srrl")
    else:
        with pytest.raises(UserError, match="srrl .* leave a batch of one"):
            refuse_single_samples(ctx, "srrl")


class Squared(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) ** 2


def test_synchronised_norms_keep_their_activations():
    """torch's conversion makes a plain norm of whatever derives from one."""
    for name in ("timm:mobilenetv3_small_050", "wrn_16_2_aux"):
        kinds = [
            [type(m).__name__ for m in net.modules()]
            for net in (model_dict[name](), sync_batch_norm(model_dict[name]()))
        ]
        norms, synced = ([kind for kind in names if "Norm" in kind] for names in kinds)
        assert len(norms) == len(synced) and all(kind.startswith("SyncBatchNorm") for kind in synced)
        assert [kind.endswith("Act") for kind in synced] == [kind.endswith("Act2d") for kind in norms]
    with pytest.raises(UserError, match="--sync_bn cannot synchronise Squared"):
        sync_batch_norm(nn.Sequential(Squared(3)))


@pytest.mark.parametrize("names, looks_back", [("kd", False), ("sp", False), ("crd", True), ("sp+crd", True)])
def test_features_of_past_parts_are_kept_for_those_who_look_back(names, looks_back, monkeypatch):
    """Else the maps of all accumulated parts would stay in memory until the step."""
    cfg, seen = combined(*names.split("+")), []
    step = make_step(Combined, cfg, cnn(4), lambda: network(cnn(6)), ToyData(), B, accumulate=2)
    monkeypatch.setattr(step.method, "after_step", lambda s, t, batch: seen.append(len(batch)))
    step.train()
    step(ToyData().batch(), PROGRESS)
    assert seen == ([B // 2, B // 2] if looks_back else [])


def test_hard_label_methods_take_soft_labels():
    method, (z_s, z_t) = build("dkd", SIDE, SIDE), torch.randn(2, 4, 5)
    hard = batch_of(torch.arange(4))
    soft = F.one_hot(torch.arange(4), 5) * 0.9 + 0.02
    mixed = dataclasses.replace(hard, target=torch.zeros(4, dtype=torch.int64), soft_target=soft)
    one, other = (method.terms({"logits": z_s}, {"logits": z_t}, batch, Progress()) for batch in (hard, mixed))
    assert one == other
