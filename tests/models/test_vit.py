"""Transformers: the small ones of the registry, and what hooks say of any of them, against their own attention."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from core.protocols import Context, UserError
from core.taps import TappedNet, probe
from distiller_zoo import method_dict
from distiller_zoo.cakd import CAKD
from helper.networks.load import position_notice
from models import external, model_dict
from models._common import with_drop_path
from models._torchvision import any_size
from models._transformer import read_normed_qkv, read_qkv, resized_positions
from tests.golden.rule import rand
from tests.support.model_contract import check_layout, check_training, shapes_alone, tapped

TINY = ("torchvision:vit_b_16", "timm:vit_tiny_patch16_224", "timm:deit_tiny_distilled_patch16_224")
WHOLE = {  # name: per-sample shapes of qkv, patches and class token
    "torchvision:vit_b_16": ((3, 12, 197, 64), (196, 768), (768,)),
    "torchvision:vit_b_32": ((3, 12, 50, 64), (49, 768), (768,)),
    "torchvision:vit_l_16": ((3, 16, 197, 64), (196, 1024), (1024,)),
    "torchvision:swin_t": ((3, 24, 49, 32), (49, 768), None),
    "timm:vit_tiny_patch16_224": ((3, 3, 197, 64), (196, 192), (192,)),
    "timm:deit_small_distilled_patch16_224": ((3, 6, 198, 64), (196, 384), (384,)),
    "timm:swin_large_patch4_window7_224": ((3, 48, 49, 32), (49, 1536), None),
}


@pytest.fixture(autouse=True)
def need_timm(request):
    if "timm" in request.node.name:
        pytest.importorskip("timm", reason="needs timm, of requirements-extra.txt")


HEADS = {"vit_small_cifar": 6}  # of the others 3; keys and shapes do not depend on their number


@pytest.mark.parametrize("name", [name for name in model_dict if name.startswith("vit_")])
def test_heads_of_our_own(name):
    with shapes_alone():
        heads = {block.attn.heads for block in model_dict[name](num_classes=2).blocks}
    assert heads == {HEADS.get(name, 3)}


LARGE = ("torchvision:vit_b_32", "torchvision:vit_l_16", "timm:swin_large_patch4_window7_224")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LARGE else ()) for n in WHOLE])
def test_taps_of_teachers_are_found(name):
    spec, (qkv, patches, class_token) = model_dict[name], WHOLE[name]
    assert ("class_token" in spec.taps) == (class_token is not None)
    want = tuple(k for k in ("qkv", "patches", "class_token") if k in spec.taps)
    with shapes_alone():
        out = tapped(spec, num_classes=7, want=want)({"image": torch.zeros(2, 3, 224, 224)})
    assert {k: tuple(out[k].shape[1:]) for k in want} == {
        k: v for k, v in (("qkv", qkv), ("patches", patches), ("class_token", class_token)) if v is not None
    }


def test_drop_path_skips_branches_in_training_alone():
    spec = with_drop_path(model_dict["vit_micro_cifar"], 0.9)
    torch.manual_seed(0)
    plain, dropped = model_dict["vit_micro_cifar"](num_classes=5).eval(), spec(num_classes=5).eval()
    dropped.load_state_dict(plain.state_dict())
    assert [getattr(block.drop_path, "p", 0) for block in dropped.blocks] == pytest.approx([0, 0.3, 0.6, 0.9])
    x = torch.rand(8, 3, 32, 32)
    assert torch.equal(plain(x), dropped(x))
    tokens = torch.rand(64, 5, 96)
    last = dropped.blocks[-1].train()
    skipped = (last(tokens) == tokens).flatten(1).all(1).float().mean()
    assert 0.6 < skipped < 0.95  # both branches of an image: 0.81
    with torch.random.fork_rng():
        torch.manual_seed(3)
        one = last(tokens)
        torch.manual_seed(3)
        assert torch.equal(one, last(tokens))


@pytest.mark.parametrize(
    ("name", "has"),
    [
        ("resnet8", False),
        ("vgg8", False),
        ("vit_tiny_cifar_distilled", True),
        ("torchvision:convnext_tiny", True),
        ("torchvision:resnet18", False),
        ("timm:resnet18", True),
        ("timm:vit_tiny_patch16_224", True),
        ("timm:vgg11", False),
    ],
)
def test_which_networks_have_branches_to_skip(name, has):
    before = torch.get_rng_state()
    spec = with_drop_path(model_dict[name], 0.2)
    assert (spec is not None) == has and torch.equal(torch.get_rng_state(), before)
    if spec is not None:
        with shapes_alone():
            rates = [getattr(m, "drop_prob", getattr(m, "p", None)) for m in spec(num_classes=2).modules()]
        assert max(rate for rate in rates if rate is not None) == pytest.approx(0.2)


NO_ATTENTION = (
    "torchvision:resnet18",
    "torchvision:swin_v2_t",
    "timm:convnext_atto",
    "timm:beit_base_patch16_224",  # a relative position bias
    "timm:eva02_tiny_patch14_224",  # rotary embeddings
    "timm:cait_xxs24_224",  # class attention
)


@pytest.mark.parametrize("name", NO_ATTENTION)
def test_networks_that_show_no_attention(name):
    assert not model_dict[name].taps.keys() & {"qkv", "patches", "class_token"}


@pytest.mark.parametrize(("size", "map_size"), [(448, "14x14"), (192, "6x6")])
def test_a_swin_whose_window_is_not_its_map_is_one_sentence(size, map_size):
    """Larger images have several windows, smaller ones a padded map: neither is attention over all patches."""
    with shapes_alone():
        net = tapped(model_dict["torchvision:swin_t"], num_classes=7, want=("qkv", "patches"))
        with pytest.raises(UserError, match=f"windows of 7x7, but its last map is {map_size} .*--image_size"):
            probe(net, {"image": (3, size, size)})
        without = tapped(model_dict["torchvision:swin_t"], num_classes=7, want=("patches",))
        assert probe(without, {"image": (3, size, size)}).shapes["patches"] == ((size // 32) ** 2, 768)


def test_a_timm_hybrid_shows_the_attention_behind_its_stem():
    """Its stages are those of the stem, a patch is a place of its last map, and positions are interpolated."""
    spec = model_dict["timm:vit_small_r26_s32_224"]
    assert spec.stages == tuple(f"stage{i}" for i in (1, 2, 3, 4)) and spec.patch == 32
    assert CAKD.needs(CAKD.Config(), model_dict["resnet8"], spec).teacher == ("qkv", "patches")
    want = ("qkv", "patches", "class_token", "tokens", "stage4")
    with torch.device("meta"):
        net = tapped(spec, num_classes=7, want=want)
        shapes = {size: probe(net, {"image": (3, size, size)}).shapes for size in (224, 256)}
    assert [shapes[224][k] for k in want] == [(3, 6, 50, 64), (49, 384), (384,), (50, 384), (384, 7, 7)]
    assert shapes[256]["qkv"] == (3, 6, 65, 64) and "8x8" in position_notice(spec, {"image": (3, 256, 256)})[0]


QK_NORM, TIMM_SWIN = "timm:vit_tiny_patch16_224 qk_norm", "timm:swin_tiny_patch4_window7_224"


def tiny(name):
    """A network of the family for 32 px, with patches of 8 px and two blocks; and the spec of the whole one, with the
    last attention's place in this one."""
    torch.manual_seed(0)
    if name == QK_NORM:
        return normed()
    spec = model_dict[name]
    if name == TIMM_SWIN:  # at 56 px the last map is the 7 x 7 window of the whole one at 224 px
        model = spec(num_classes=7, img_size=56, embed_dim=24, depths=(1, 2), num_heads=(2, 4))
        taps = {k: spec.taps[k] for k in ("qkv", "patches")}
        qkv = dataclasses.replace(taps["qkv"], module="layers.1.blocks.1.attn.qkv", read=partial(read_qkv, 4))
        return dataclasses.replace(spec, taps={**taps, "qkv": qkv}, input_shape=(3, 56, 56)), model
    if name not in TINY:
        return spec, spec(num_classes=7)
    if name.startswith("torchvision"):
        from torchvision import models

        model = models.VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=7)
        torch.nn.init.normal_(model.heads.head.weight)
        model = any_size(model)
    else:
        model = spec(num_classes=7, img_size=32, patch_size=8, depth=2, embed_dim=48)
    qkv = spec.taps["qkv"]
    qkv = dataclasses.replace(qkv, module=qkv.module.replace("11", "1"))
    return dataclasses.replace(spec, taps={**spec.taps, "qkv": qkv}, patch=8, input_shape=(3, 32, 32)), model


def normed():
    """A ViT of timm that normalises queries and keys, as the dry run finds it."""
    size = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "qk_norm": True}
    build_normed = partial(external.timm_build, "vit_tiny_patch16_224", **size)
    spec = external._spec(QK_NORM, build_normed, (3, 32, 32), external.IMAGENET_MEAN, external.IMAGENET_STD)
    model = spec(num_classes=7)
    for part in ("q_norm", "k_norm"):  # else an identity up to scale
        norm = model.get_submodule(spec.taps["qkv"].module).get_submodule(part)
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    return spec, model


def attended(q, k, v, bias=0.0):
    """softmax(q k^T / sqrt(d) + bias) v of [B, H, N, d], heads joined: [B, N, D]."""
    probabilities = (q @ k.mT / q.shape[-1] ** 0.5 + bias).softmax(-1)
    return (probabilities @ v).transpose(1, 2).flatten(2)


def last_attention(net):
    """The module, and how its joined heads are brought to its output."""
    module = net.model.get_submodule(net.spec.taps["qkv"].module.removesuffix(".qkv"))
    project = module.out_proj if hasattr(module, "out_proj") else module.proj
    if hasattr(module, "get_relative_position_bias"):
        return module, project, module.get_relative_position_bias()
    return module, project, module._get_rel_pos_bias() if hasattr(module, "_get_rel_pos_bias") else 0.0


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("name", [*TINY, QK_NORM, "torchvision:swin_t", TIMM_SWIN, "vit_micro_cifar"])
def test_qkv_gives_the_modules_own_attention(name, grad):
    """Recomputed attention equals the module's output to 1e-6, also where a fused kernel computed that."""
    net = tapped(*tiny(name), ("qkv", "patches")).eval()
    assert (net.spec.taps["qkv"].read is read_normed_qkv) == (name == QK_NORM)
    module, project, bias = last_attention(net)
    outputs = []
    module.register_forward_hook(lambda m, args, out: outputs.append(out[0] if isinstance(out, tuple) else out))
    size = net.spec.input_shape[-1]
    with torch.set_grad_enabled(grad):
        out = net({"image": rand((2, 3, size, size), 1)})
        again = project(attended(*out["qkv"].unbind(1), bias))
    want = outputs[0].flatten(1, -2) if "swin" in name else outputs[0]
    torch.testing.assert_close(again, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", TINY)
def test_tokens_are_what_the_classifier_reads(name):
    net = tapped(*tiny(name)).eval()
    out = net({"image": rand((2, 3, 32, 32), 1)})
    prefix = out["tokens"].shape[1] - 16
    assert torch.equal(out["patches"], out["tokens"][:, prefix:]) and out["qkv"].shape[3] == 16 + prefix
    assert torch.equal(out["class_token"], out["tokens"][:, 0])
    assert torch.equal(out["pooled"], out["tokens"][:, prefix - 1])  # the last classifier of two reads the second


@pytest.mark.parametrize("name", ["torchvision:vit_b_16", "timm:vit_tiny_patch16_224", "vit_micro_cifar"])
def test_other_image_sizes(name):
    """Positions are interpolated, weights keep their shapes; at the size it was made for nothing changes."""
    spec, model = tiny(name)
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    side = probe(tapped(spec, model, ("patches",)), {"image": (3, 48, 48)})
    assert side.shapes["patches"][0] == (48 // spec.patch) ** 2 and side.input_shape == (3, 48, 48)
    assert {k: v.shape for k, v in model.state_dict().items()} == shapes
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    with pytest.raises(UserError, match="47"):
        probe(tapped(spec, model), {"image": (3, 47, 47)})
    sentence = position_notice(spec, {"image": (3, 48, 48)})
    assert len(sentence) == 1 and "interpolated from" in sentence[0] and "48 px" in sentence[0]
    assert not position_notice(spec, {"image": spec.input_shape})


def test_torchvision_vit_computes_what_torchvision_computes():
    from torchvision import models

    torch.manual_seed(0)
    plain = models.VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=7).eval()
    torch.nn.init.normal_(plain.heads.head.weight)
    x = rand((2, 3, 32, 32), 4)
    with torch.no_grad():
        want = plain(x)
        torch.testing.assert_close(any_size(plain)(x), want, rtol=1e-6, atol=1e-6)


def test_interpolated_positions():
    positions = torch.zeros(1, 5, 1)
    positions[0, :, 0] = torch.tensor([9.0, 0, 1, 0, 1])  # class token, then columns 0 and 1
    assert resized_positions(positions, 1, (2, 2)) is positions
    moved = resized_positions(positions, 1, (4, 4))
    want = F.interpolate(torch.tensor([[[[0.0, 1], [0, 1]]]]), (4, 4), mode="bicubic").flatten()
    assert moved.shape == (1, 17, 1) and moved[0, 0] == 9
    torch.testing.assert_close(moved[0, 1:, 0], want)


def test_64_px_transformers():
    net = tapped(model_dict["vit_micro_64"], num_classes=7)
    check_training(net, 64)
    check_layout(net, 64)
    assert model_dict["vit_tiny_64"].input_shape == (3, 64, 64)


def test_methods_of_a_pooled_map_refuse_a_class_token():
    spec = model_dict["vit_micro_cifar"]
    data = {"image": (3, 32, 32)}
    for name in ("simkd", "cat_kd"):
        method = method_dict[name]
        needs = method.needs(method.Config(), model_dict["resnet8"], spec)
        student = probe(TappedNet(model_dict["resnet8"](num_classes=5), model_dict["resnet8"], needs.student), data)
        teacher = probe(TappedNet(spec(num_classes=5), spec, needs.teacher), data)
        with pytest.raises(UserError, match=f"{name} applies the classifier of vit_micro_cifar.*class token"):
            method(method.Config(), Context(5, torch.zeros(4, dtype=torch.int64), 4, student, teacher))


def test_a_run_says_that_positions_are_interpolated(commands, tmp_path):
    done = commands(
        "train_teacher.py", "--dataset", "digits", "--image_size", 16, "--model", "vit_micro_cifar", "--epochs", 1,
        "--max_steps", 2, "--tb_backend", "none", "--save_root", tmp_path,
    ).finished()  # fmt: skip
    assert "vit_micro_cifar: position embedding interpolated from 8x8 patches to 4x4, for images of 16 px" in done.out
