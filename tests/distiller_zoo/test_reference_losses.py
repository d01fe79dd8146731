"""Each method against a literal transcription of its equation, float64, on random inputs of several shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.support import reference_losses as reference
from tests.support.method_context import batch_of, build, run, side

B, K = 8, 10
TOLERANCE = {"rel": 1e-10, "abs": 1e-12}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def arrays(module: nn.Module, prefix: str = "") -> reference.W:
    return {prefix + k: v.detach().double().numpy() for k, v in module.state_dict().items()}


def features(stages: list[tuple[int, int, int]], pooled: int, seed: int) -> dict[str, Tensor]:
    maps = {f"stage{i + 1}": normal(B, *shape, seed=seed) for i, shape in enumerate(stages)}
    return {"logits": 3 * normal(B, K, seed=seed), "pooled": normal(B, pooled, seed=seed), **maps}


def prepared(name: str, stages_s: list, stages_t: list, pooled_s: int = 12, **options: object):
    """A distiller in float64, random everywhere (a fresh batch norm is the identity), and features of both networks."""
    pooled_t = stages_t[-1][0] if stages_t else 14
    head = nn.Linear(pooled_t, K).double()
    method = build(
        name,
        side("s", stages_s, pooled_s, K),
        side("t", stages_t, pooled_t, K, head),
        batch_size=B,
        **{"cls": 0.0, "div": 0.0, **options},
    ).double()
    with torch.no_grad():
        for i, p in enumerate(method.parameters()):
            p.add_(0.1 * normal(*p.shape, seed=i))
    return method, features(stages_s, pooled_s, 1), features(stages_t, pooled_t, 2), head


def maps(f: dict[str, Tensor]) -> list:
    return [v.numpy() for k, v in f.items() if k.startswith("stage")]


def term(method, s: dict[str, Tensor], t: dict[str, Tensor]) -> float:
    return run(method, s, t, batch_of(torch.arange(B) % K))[0][method.name].item()


UP, DOWN, SAME, ODD = (4, 4), (8, 8), (6, 6), (7, 5)
SIZES = [(UP, UP), (DOWN, UP), (UP, DOWN), (DOWN, (3, 3)), ((3, 3), DOWN), (ODD, ODD)]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd(temperature):
    method, s, t, _ = prepared("kd", [], [], cls=1.0, div=1.0, kd_T=temperature)
    target = torch.arange(B) % K
    terms, *_ = run(method, s, t, batch_of(target))
    z_s, z_t = s["logits"].numpy(), t["logits"].numpy()
    assert terms["cls"].item() == pytest.approx(reference.cross_entropy(z_s, target.numpy()), **TOLERANCE)
    assert terms["div"].item() == pytest.approx(reference.kd(z_s, z_t, temperature), **TOLERANCE)


@pytest.mark.parametrize(("size_s", "size_t"), [*SIZES, ((5, 5), (3, 3)), ((5, 5), (9, 9))])
def test_fitnet(size_s, size_t):
    method, s, t, _ = prepared("fitnet", [(3, *size_s)], [(5, *size_t)])
    assert term(method, s, t) == pytest.approx(reference.fitnet(maps(s)[0], maps(t)[0], arrays(method)), **TOLERANCE)


def test_fitnet_reads_the_layer_it_was_told():
    method, s, t, _ = prepared("fitnet", [(3, 8, 8), (4, 4, 4)], [(5, 8, 8), (6, 4, 4)], hint_layer=2)
    assert term(method, s, t) == pytest.approx(reference.fitnet(maps(s)[1], maps(t)[1], arrays(method)), **TOLERANCE)


@pytest.mark.parametrize(("size_s", "size_t"), SIZES)
def test_at(size_s, size_t):
    method, s, t, _ = prepared("at", [(3, *size_s), (4, 4, 4)], [(5, *size_t), (6, 2, 2), (7, 1, 1)])
    assert term(method, s, t) == pytest.approx(reference.at(maps(s), maps(t)), **TOLERANCE)


@pytest.mark.parametrize(("size_s", "size_t"), SIZES)
def test_sp(size_s, size_t):
    method, s, t, _ = prepared("sp", [(3, *size_s)], [(5, *size_t)])
    assert term(method, s, t) == pytest.approx(reference.sp(maps(s)[0], maps(t)[0]), **TOLERANCE)


@pytest.mark.parametrize(("size_s", "size_t"), SIZES)
def test_vid(size_s, size_t):
    method, s, t, _ = prepared("vid", [(3, *size_s), (4, 2, 2)], [(5, *size_t), (6, 4, 4)])
    expected = sum(
        reference.vid(f_s, f_t, arrays(layer)) for f_s, f_t, layer in zip(maps(s), maps(t), method.layers, strict=True)
    )
    assert term(method, s, t) == pytest.approx(expected, **TOLERANCE)


def test_vid_starts_at_variance_five():
    method, s, t, _ = prepared("vid", [(3, 4, 4)], [(5, 4, 4)])
    fresh = build("vid", side("s", [(3, 4, 4)], 3, K), side("t", [(5, 4, 4)], 5, K))
    s, _ = fresh.connect({k: v.float() for k, v in s.items()}, {k: v.float() for k, v in t.items()})
    torch.testing.assert_close(s["vid.variance.stage1"], torch.full((5,), 5.0))


@pytest.mark.parametrize("pooled_s", [12, 14, 20])
def test_srrl(pooled_s):
    method, s, t, head = prepared("srrl", [], [], pooled_s)
    expected = reference.srrl(
        s["pooled"].numpy(),
        t["pooled"].numpy(),
        t["logits"].numpy(),
        arrays(method.transfer, "transfer."),
        arrays(head, "fc."),
    )
    assert term(method, s, t) == pytest.approx(expected, **TOLERANCE)


@pytest.mark.parametrize("soft", [1.0, 0.5])
@pytest.mark.parametrize(("size_s", "size_t"), SIZES)
def test_semckd(size_s, size_t, soft):
    method, s, t, _ = prepared("semckd", [(3, *size_s), (4, 3, 3)], [(5, 6, 6), (6, *size_t), (3, 2, 2)], soft=soft)
    expected = reference.semckd(maps(s), maps(t), arrays(method), soft)
    assert term(method, s, t) == pytest.approx(expected, **TOLERANCE)


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize(("size_s", "size_t"), SIZES)
def test_simkd(size_s, size_t, factor):
    method, s, t, head = prepared("simkd", [(3, 8, 8), (4, *size_s)], [(5, 8, 8), (6, *size_t)], factor=factor)
    w = arrays(method.deployment().transfer, "transfer.")
    loss, logits = reference.simkd(maps(s)[-1], maps(t)[-1], w, arrays(head, "fc."))
    terms, s, t = run(method, s, t, batch_of(torch.arange(B) % K))
    assert terms["simkd"].item() == pytest.approx(loss, **TOLERANCE)
    torch.testing.assert_close(s["logits"].detach(), torch.from_numpy(logits), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("nce_k", [1, 6, 30])
def test_crd(nce_k):
    method, s, t, _ = prepared("crd", [], [], feat_dim=6, nce_k=nce_k)
    index = torch.tensor([4, 9, 0, 33, 21, 48, 17, 2])
    places = method.contrast(index)
    method.contrast.forward = lambda _: places
    batch = batch_of(torch.arange(B) % K, index)
    terms, s_all, t_all = run(method, s, t, batch)
    w = arrays(method)
    bank_1, bank_2 = w["memory.memory_v1"], w["memory.memory_v2"]
    expected = reference.crd(
        s["pooled"].numpy(), t["pooled"].numpy(), w, bank_1.copy(), bank_2.copy(), places.numpy(), 0.07
    )
    assert terms["crd"].item() == pytest.approx(expected, **TOLERANCE)
    wanted = [
        reference.crd_update(bank, index.numpy(), v.detach().numpy(), 0.5)
        for bank, v in ((bank_1, s_all["crd.v_s"]), (bank_2, t_all["crd.v_t"]))
    ]
    method.after_step(s_all, t_all, batch)
    for bank, expected_bank in zip((method.memory.memory_v1, method.memory.memory_v2), wanted, strict=True):
        torch.testing.assert_close(bank, torch.from_numpy(expected_bank), rtol=1e-10, atol=1e-12)
