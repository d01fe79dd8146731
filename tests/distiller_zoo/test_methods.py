"""What the methods of the registry say of themselves: names, weights, flags, needs, and errors a user can act on."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.protocols import ModelSpec, Progress, Tap, UserError
from core.taps import TappedNet, probe
from distiller_zoo import method_dict, published_names
from distiller_zoo._heads import WithHeads
from distiller_zoo._math import attention_map, rows, squared_error
from distiller_zoo._task import chain_of, union_of_needs, with_ordered_gradients
from distiller_zoo.base import OWN_LOGITS
from distiller_zoo.reviewkd import hierarchical_context
from helper.deploy.cost import macs
from helper.options.method_flags import flags_of
from models import model_dict
from tests.support.cases import CLASSES, config
from tests.support.contract import make_step
from tests.support.method_context import batch_of, build, run, side, spec
from tests.support.toys import B, ToyData, network

STAGES_S, STAGES_T = [(4, 8, 8), (6, 4, 4)], [(8, 8, 8), (12, 4, 4)]


def small(method: str, stages_s=STAGES_S, stages_t=STAGES_T, head: nn.Module | None = None, **options: object):
    return build(method, side("student", stages_s, 6, 5), side("teacher", stages_t, 12, 5, head), **options)


def test_names():
    for name, method in method_dict.items():
        assert method.name == name
    assert {name: method_dict.resolve(published) for name, published in published_names.items()} == {
        name: name for name in published_names
    }
    assert method_dict["kr"].name == "reviewkd"


@pytest.mark.parametrize(
    ("name", "weights", "authors"),
    [
        ("vanilla", (1, 0, 0), (1, 0, 0)),
        ("kd", (1, 1, 0), (0.1, 0.9, 0)),
        ("fitnet", (1, 1, 100), (1, 0, 100)),
        ("at", (1, 1, 1000), (1, 0, 1000)),
        ("sp", (1, 1, 3000), (1, 0, 3000)),
        ("vid", (1, 1, 1), (1, 0, 1)),
        ("crd", (1, 1, 0.8), (1, 0, 0.8)),
        ("srrl", (1, 1, 1), (1, 1, 1)),
        ("semckd", (1, 1, 400), (1, 1, 400)),
        ("simkd", (0, 0, 1), (0, 0, 1)),
        ("ab", (1, 1, 1), (1, 0, 1)),
        ("cc", (1, 1, 0.02), (1, 0, 0.02)),
        ("fsp", (1, 1, 50), (1, 0, 50)),
        ("ft", (1, 1, 200), (1, 0, 200)),
        ("hkd", (1, 1, 1), (1, 1, 1)),
        ("irg", (1, 1, 0.005), (1, 1, 0.005)),
        ("kdsvd", (1, 1, 1), (1, 0, 1)),
        ("nst", (1, 1, 50), (1, 0, 50)),
        ("ofd", (1, 1, 1e-3), (1, 0, 1e-3)),
        ("pkt", (1, 1, 30000), (1, 0, 30000)),
        ("reviewkd", (1, 1, 5), (1, 0, 5)),
        ("rkd", (1, 1, 1), (1, 0, 1)),
        ("cat_kd", (1, 1, 300), (0, 0, 300)),
        ("ctkd", (0.1, 0, 0.9), (0.1, 0, 0.9)),
        ("dist", (1, 0, 2), (1, 0, 2)),
        ("dkd", (1, 0, 1), (1, 0, 1)),
        ("ttm", (1, 0, 45), (1, 0, 45)),
        ("pld", (0, 0, 1), (0, 0, 1)),
        ("luminet", (2, 0, 1), (2, 0, 1)),
        ("wkd_l", (1, 0, 600), (1, 0, 600)),
        ("rld", (1, 0, 1), (1, 0, 1)),
        ("sdd", (0.1, 0, 0.9), (0.1, 0, 0.9)),
        ("ldrld", (1, 0, 1), (1, 0, 1)),
        ("skd", (0.5, 0, 0.5), (0.5, 0, 0.5)),
        ("crld", (1, 0, 1), (1, 0, 1)),
        ("mgd", (1, 1, 7e-5), (1, 0, 7e-5)),
        ("mlkd", (0.1, 0, 0.9), (0.1, 0, 0.9)),
        ("nkd", (1, 0, 1), (1, 0, 1)),
        ("ofa_kd", (1, 0, 1), (1, 0, 1)),
        ("srd", (1, 1, 1), (1, 1, 1)),
        ("vkd", (1, 1, 1), (1, 1, 1)),
        ("wttm", (1, 0, 4), (1, 0, 4)),
        ("logits", (1, 0, 1), (1, 0, 1)),
        ("cakd", (1, 0, 1), (1, 0, 1)),
    ],
)
def test_published_weights(name, weights, authors):
    config = method_dict[name].Config()
    assert (config.cls, config.div, config.beta) == weights
    config = dataclasses.replace(config, **config.authors)
    assert (config.cls, config.div, config.beta) == authors


def test_flags_are_spelled_as_published():
    methods = [method_dict[name] for name in ("fitnet", "semckd", "simkd", "crd", "cc", "irg")]
    flags = [flag for m in methods for flag in flags_of(m)]
    assert {flag.dest: (flag.names[0], flag.names[1:], flag.default) for flag in flags} == {
        "hint_layer": ("--hint_layer", (), 1),
        "soft": ("--soft", ("-s",), 1.0),
        "factor": ("--factor", ("-f",), 2),
        "feat_dim": ("--feat_dim", (), 128),
        "mode": ("--mode", (), "exact"),
        "nce_k": ("--nce_k", (), 16384),
        "nce_t": ("--nce_t", (), 0.07),
        "nce_m": ("--nce_m", (), 0.5),
        "transform_layer_s": ("--transform_layer_s", (), ()),
        "transform_layer_t": ("--transform_layer_t", (), ()),
        "no_edge_transform": ("--no_edge_transform", (), False),
    }


def test_notes_name_the_pairs_only_when_stages_are_left_over():
    for name in ("at", "vid"):
        method = method_dict[name]
        assert method.notes(method.Config(), spec("a", 3), spec("b", 3)) == ()
        (note,) = method.notes(method.Config(), spec("a", 3), spec("b", 4))
        assert "stage3 with stage3" in note and "b 4" in note


@pytest.mark.parametrize(
    "name",
    ["at", "sp", "vid", "semckd", "simkd", "fitnet", "ab", "fsp", "ft", "hkd", "kdsvd", "nst", "ofd", "reviewkd"],
)
def test_networks_without_maps_are_refused(name):
    method = method_dict[name]
    bare = ModelSpec("sensor_net", nn.Module, {}, (), "fc")
    with pytest.raises(UserError, match="sensor_net"):
        union_of_needs(method, method.Config(), bare, spec("t", 3))


def test_hint_layer_must_be_a_map_of_both():
    method = method_dict["fitnet"]
    with pytest.raises(UserError, match=r"--hint_layer 4 .*0 \(stem and stem\), .*3 \(stage3 and stage3\)"):
        method.needs(method.Config(hint_layer=4), spec("s", 3), spec("t", 4))
    assert method.needs(method.Config(hint_layer=2), spec("s", 3), spec("t", 4)).student == ("stage2",)


def test_factor_must_divide():
    with pytest.raises(UserError, match="--factor 5 does not divide the 12 channels .* e.g. 1, 2, 3, 4, 6, 12"):
        small("simkd", factor=5)


def test_a_classifier_that_reads_something_else_is_refused():
    with pytest.raises(UserError, match="teacher, which reads 20 values, while its last map has 12 channels"):
        small("simkd", head=nn.Linear(20, 5))
    with pytest.raises(UserError, match="teacher, which reads 20 values, while its pooled feature has 12"):
        small("srrl", head=nn.Linear(20, 5))


def test_semckd_wants_full_batches():
    method = method_dict["semckd"]
    assert method.needs(method.Config(), spec("s", 2), spec("t", 2)).full_batches
    with pytest.raises(UserError, match="3 samples are too few"):
        small("semckd", batch_size=3)


EQUAL = ("fsp", "kdsvd")  # methods that compare channel by channel


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        (name, stage)
        for name in method_dict
        # of auxiliary heads: test_losses_hsakd.py; of a transformer: test_cakd.py, test_losses_parts.py; those that run
        # a part of the network itself: test_losses_recent_graph.py
        if name not in ("cakd", "deit", "norm", "fcfd") and not issubclass(method_dict[name], WithHeads)
        for stage in range(len(chain_of(method_dict[name])))
    ],
)
def test_features_added_are_prefixed(name, stage):
    """`deploy` may replace the logits; nothing else of the networks is overwritten."""
    stages_t = STAGES_S if name in EQUAL else STAGES_T
    options = {"crd": {"nce_k": 4}, "ldrld": {"top": 3}}.get(name, {})
    method = small(name, stages_t=stages_t, stage=stage, **options)
    s, t = (
        {
            "logits": torch.randn(8, 5),
            "pooled": torch.randn(8, width),
            "stem": torch.randn(8, *stages[0]),
            **{f"stage{i + 1}{tap}": torch.randn(8, *x) for i, x in enumerate(stages) for tap in ("", "_preact")},
        }
        for width, stages in ((6, STAGES_S), (12, stages_t))
    )
    views = 2 if name == "crld" else 1  # which adds the second in prepare()
    terms, s_out, t_out = run(method, s, t, batch_of(torch.arange(8 // views) % 5, views=views))
    own = terms.keys() - {"cls", "div", "peer_cls", "peer_div"}
    assert own <= {method.name, f"{name}_cls", f"{name}_target", f"{name}_other"}
    assert terms.keys() <= method.weights(Progress()).keys()
    for before, after in ((s, s_out), (t, t_out)):
        assert all(k.startswith(f"{method.name}.") for k in after.keys() - before.keys() - {OWN_LOGITS})
        changed = {k for k in before if after[k] is not before[k]}
        assert changed <= ({"logits"} if name == "simkd" else set())


class Late(nn.Module):
    """A network with a layer between its last map and the pooled feature, as in MobileNetV2."""

    def __init__(self):
        super().__init__()
        self.body, self.late, self.fc = nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 9, 1), nn.Linear(9, 5)

    def forward(self, x):
        return self.fc(self.late(self.body(x)).mean((2, 3)))


def test_simkd_leaves_out_all_behind_the_last_map():
    late = ModelSpec("late", Late, {"stage1": Tap("body")}, ("stem", "stage1", "pooled"), "fc", input_shape=(3, 9, 9))
    net = TappedNet(Late(), late, ("stage1",))
    teacher = side("teacher", [(12, 4, 4)], 12, 5)
    method = build("simkd", probe(net, {"image": (3, 9, 9)}), teacher)
    wanted = [*net.model.late.parameters(), *net.model.fc.parameters()]
    for _ in range(2):  # before and after they are frozen
        assert {id(p) for p in method.unused(net)} == {id(p) for p in wanted}
        [p.requires_grad_(False) for p in wanted]
    assert net.training and all(p.grad is None for p in net.parameters())
    assert not build("simkd", probe(net, {"image": (3, 9, 9)}), teacher, div=1.0).unused(net)


def test_simkd_deploys_projector_and_classifier():
    a, b = small("simkd", seed=0), small("simkd", seed=1)
    state = a.deployment().entries()
    assert set(state) == {"proj", "head"} and "transfer.0.weight" in state["proj"]
    b.deployment().load_entries(state)
    s = {"logits": torch.zeros(2, 5), "stage2": torch.randn(2, *STAGES_S[1])}
    assert a.eval().deploy(s)["logits"].equal(b.eval().deploy(s)["logits"])
    assert not any(p.requires_grad for p in a.deployment().teacher_head.parameters())
    taps = a.deployment().taps
    assert {k: tap.module for k, tap in taps.items()} == {"stage2": "transfer", "pooled": "pool"}
    assert a.deployment().get_submodule(a.deployment().head) is a.deployment().teacher_head


def test_a_replaced_classifier_costs_no_macs():
    data = ToyData(image=(3, 32, 32), num_classes=CLASSES)
    student, device = model_dict["resnet8"], torch.device("cpu")
    step = make_step(
        method_dict["simkd"], config("simkd"), student, lambda: network(model_dict["resnet14"], CLASSES), data, B
    )
    hidden = 64 // 2
    projector = 64 * (64 * hidden + 9 * hidden * hidden + hidden * 64)  # on 8x8 maps
    bare, deployed = (macs(net, data.shapes, device) for net in (step.student, step.deployed()))
    assert deployed == bare - 64 * CLASSES + projector + 64 * CLASSES
    assert step.student(data.batch().inputs)["logits"].shape == (B, CLASSES)  # the classifier is as it was


def test_gradients_arrive_in_the_memory_order_of_their_maps():
    """The loss reads the map in the other order, as adaptive pooling may."""
    torch.manual_seed(0)
    weights, last = torch.rand(2, 4, 8, 8), torch.channels_last
    found = []
    for ordered in (False, True):
        x = torch.rand(2, 4, 8, 8).to(memory_format=last).requires_grad_()
        y = x.clone()
        features = {"stage1": y, "same": y, "logits": x.sum((2, 3))}
        assert not ordered or with_ordered_gradients(features) == features
        y.register_hook(found.append)
        (features["same"].contiguous() * weights).sum().backward()
    assert [g.is_contiguous(memory_format=last) for g in found] == [False, True]
    assert torch.equal(*found)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_squared_error_keeps_the_memory_order_of_a_map(reduction):
    last, dims = torch.channels_last, (2, 4, 8, 8)
    f, target, factor = (torch.rand(dims).to(memory_format=last) for _ in range(3))
    plain, ordered = (f.clone().requires_grad_() for _ in range(2))
    values = [F.mse_loss(plain, target, reduction=reduction), squared_error(ordered, target, reduction)]
    for value in values:
        (value * factor if reduction == "none" else value).sum().backward()
    assert torch.equal(*values)
    assert torch.equal(plain.grad, ordered.grad)
    assert ordered.grad.is_contiguous(memory_format=last)


def test_rows_and_attention_do_not_depend_on_the_memory_order():
    f = torch.rand(3, 4, 5, 6)
    ordered = f.to(memory_format=torch.channels_last)
    assert torch.allclose(rows(f) @ rows(f).T, rows(ordered) @ rows(ordered).T)
    assert torch.allclose(attention_map(f), attention_map(ordered))
    assert torch.allclose(attention_map(f), F.normalize(f.pow(2).mean(1).flatten(1)))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 7), (8, 6), (3, 3)])
def test_context_averages_whole_maps(height, width):
    """HCL with and without grids that divide each other."""
    a, b = torch.rand(2, 2, 3, height, width, dtype=torch.float64)
    grids = [g for g in (4, 2, 1) if g < height]
    shares = [2.0**-i for i in range(1, len(grids) + 1)]
    errors = [F.mse_loss(*(F.adaptive_avg_pool2d(f, g) for f in (a, b))) for g in grids]
    expected = (F.mse_loss(a, b) + sum(w * e for w, e in zip(shares, errors, strict=True))) / (1 + sum(shares))
    assert hierarchical_context(a, b).item() == pytest.approx(expected.item())
