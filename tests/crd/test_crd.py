"""CRD's memory: what is drawn, what is kept, and how much memory it takes."""

from __future__ import annotations

import subprocess

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import crd.memory as memory_module
from core.protocols import UserError
from crd.criterion import NCECriterion
from crd.memory import ContrastSampler, MemoryBank, bank_scores
from tests.support.commands import ROOT
from tests.support.method_context import batch_of, build, run, side

LABELS = torch.tensor([0] * 9 + [1] * 4 + [3] * 7)[torch.randperm(20, generator=torch.Generator().manual_seed(3))]
CLASSES = (0, 1, 3)  # class 2 is empty


def sampler(labels: Tensor = LABELS, k: int = 5, mode: str = "exact", seed: int = 0) -> ContrastSampler:
    return ContrastSampler(labels, k, mode, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("k", "distinct"), [(1, True), (5, True), (11, True), (12, False), (40, False)])
def test_negatives_are_of_other_classes(k, distinct):
    """The largest class has 9 of 20 samples, so 11 others."""
    draw = sampler(k=k)
    assert draw.distinct == distinct
    for _ in range(20):
        places = draw(torch.arange(20))
        assert places.shape == (20, 1 + k) and places.dtype == torch.int64
        assert places[:, 0].equal(torch.arange(20))
        assert (LABELS[places[:, 1:]] != LABELS[:, None]).all()
        assert places.min() >= 0 and places.max() < 20
        if distinct:
            assert all(len(set(row)) == k for row in places[:, 1:].tolist())


@pytest.mark.parametrize("k", [5, 40])
def test_negatives_are_uniform(k):
    """Chi-square over the 16 samples outside the anchor's class, 15 degrees of freedom: 99.99 % lie below 44."""
    anchor = int((LABELS == 1).nonzero()[0])
    draw = sampler(k=k)
    places = draw(torch.full((2000,), anchor))[:, 1:]
    counts = torch.bincount(places.flatten(), minlength=20).double()
    assert counts[LABELS == 1].eq(0).all()
    expected = places.numel() / 16
    assert ((counts[LABELS != 1] - expected) ** 2 / expected).sum() < 44


def test_relaxed_positive_is_uniform_in_its_class():
    draw = sampler(mode="relax")
    positives = torch.stack([draw(torch.arange(20))[:, 0] for _ in range(500)])
    assert (LABELS[positives] == LABELS).all()
    anchor = int((LABELS == 3).nonzero()[0])
    counts = torch.bincount(positives[:, anchor], minlength=20)[LABELS == 3].double()
    assert ((counts - 500 / 7) ** 2 / (500 / 7)).sum() < 28  # 6 degrees of freedom
    assert (positives[:, anchor] == anchor).any()


@pytest.mark.parametrize("k", [5, 40])
def test_draws_follow_the_generator(k):
    a, b = sampler(k=k, seed=7), sampler(k=k, seed=7)
    index = torch.arange(8)
    assert a(index).equal(b(index))
    assert not a(index).equal(sampler(k=k, seed=8)(index))
    state = a.rng.get_state()
    drawn = a(index)
    assert not a(index).equal(drawn)
    a.rng.set_state(state)
    assert a(index).equal(drawn)


def test_draws_leave_the_global_generator_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    sampler(mode="relax")(torch.arange(8))
    assert torch.get_rng_state().equal(state)


def test_many_samples_are_drawn_by_arithmetic(monkeypatch):
    monkeypatch.setattr(memory_module, "DENSE_LIMIT", 10)
    draw = sampler(k=5)
    assert not draw.distinct
    assert (LABELS[draw(torch.arange(20))[:, 1:]] != LABELS[:, None]).all()


def test_unusable_data_is_explained():
    with pytest.raises(UserError, match="all 6 training samples belong to one"):
        sampler(torch.full((6,), 2))
    with pytest.raises(UserError, match="--nce_k 0"):
        sampler(k=0)


def banks(seed: int = 0, n: int = 20, width: int = 6) -> MemoryBank:
    return MemoryBank(n, width, 0.5, torch.Generator().manual_seed(seed))


def test_banks_start_at_unit_length_on_average():
    bank = banks(n=4000, width=128)
    assert bank.memory_v1.abs().max() <= (3 / 128) ** 0.5
    assert bank.memory_v1.pow(2).sum(1).mean().item() == pytest.approx(1, abs=0.01)
    assert not bank.memory_v1.equal(bank.memory_v2)
    assert bank.memory_v1.equal(banks(n=4000, width=128).memory_v1), "the init generator decides"


def test_update_touches_only_its_rows_and_normalises():
    bank = banks()
    before = bank.memory_v1.clone(), bank.memory_v2.clone()
    v = torch.nn.functional.normalize(torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1)), dim=2)
    index = torch.tensor([4, 0, 19])
    bank.update(index, v[0], v[1])
    for old, new, v_new in zip(before, (bank.memory_v1, bank.memory_v2), v, strict=True):
        moved = torch.ones(20, dtype=torch.bool).index_fill(0, index, False)
        assert new[moved].equal(old[moved])
        torch.testing.assert_close(new[index].norm(dim=1), torch.ones(3))
        torch.testing.assert_close(new[index], torch.nn.functional.normalize(0.5 * old[index] + 0.5 * v_new))


def test_a_sample_met_twice_keeps_its_last_embedding():
    once, twice = banks(), banks()
    v = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    twice.update(torch.tensor([4, 7, 4]), v, v)
    once.update(torch.tensor([7, 4]), v[1:], v[1:])
    torch.testing.assert_close(twice.memory_v1, once.memory_v1)


def test_scores_agree_with_gathered_rows(monkeypatch):
    """Value and gradient, by matmul, by chunks and by the definition."""
    g = torch.Generator().manual_seed(0)
    bank, places = torch.randn(30, 6, generator=g).double(), torch.randint(30, (4, 9), generator=g)
    upstream = torch.randn(4, 9, generator=g).double()

    def with_gradient(scores) -> list[Tensor]:
        v = torch.linspace(-1, 1, 24, dtype=torch.float64).view(4, 6).requires_grad_()
        out = scores(v)
        return [out.detach(), torch.autograd.grad(out, v, upstream)[0]]

    expected = with_gradient(lambda v: (v[:, None] * bank[places]).sum(2))
    torch.testing.assert_close(with_gradient(lambda v: bank_scores(v, bank, places)), expected)
    monkeypatch.setattr(memory_module, "DENSE_LIMIT", 10)
    monkeypatch.setattr(memory_module, "CHUNK_BYTES", 400)
    torch.testing.assert_close(with_gradient(lambda v: bank_scores(v, bank, places)), expected)


def test_normalisers_are_set_once():
    criterion = NCECriterion(50, 0.1)
    scores = [torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(i)) * 0.1 for i in range(2)]
    criterion(*scores[0])
    first = criterion.z1.clone(), criterion.z2.clone()
    assert first[0].item() == pytest.approx(50 * (scores[0][0] / 0.1).exp().mean().item(), rel=1e-5)
    criterion(*scores[1])
    assert (criterion.z1, criterion.z2) == first
    restored = NCECriterion(50, 0.1)
    restored.load_state_dict(criterion.state_dict())
    assert restored(*scores[1]).equal(criterion(*scores[1]))


def test_the_bank_follows_view_0():
    method = build("crd", side("s", [], 12, 5), side("t", [], 14, 5), cls=0.0, div=0.0, feat_dim=6, nce_k=4)
    batch = batch_of(torch.arange(3), torch.tensor([5, 8, 11]), views=2)
    s, t = ({"logits": torch.zeros(6, 5), "pooled": torch.randn(6, n)} for n in (12, 14))
    terms, s, t = run(method, s, t, batch)
    assert terms["crd"].ndim == 0
    before = method.memory.memory_v1.clone()
    method.after_step({k: v.detach() for k, v in s.items()}, {k: v.detach() for k, v in t.items()}, batch)
    expected = torch.nn.functional.normalize(0.5 * before[batch.index] + 0.5 * s["crd.v_s"][::2].detach())
    torch.testing.assert_close(method.memory.memory_v1[batch.index], expected)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned, in bytes; views of the banks are not new memory."""

    def __init__(self, known: set[int]):
        super().__init__()
        self.known, self.bytes = known, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize(("n", "k", "batch_size"), [(50_000, 16_384, 64), (210_000, 2_048, 64)])
def test_no_intermediate_is_large(n, k, batch_size):
    """64 MB at the published CIFAR-100 settings, and beyond the dense limit."""
    labels = torch.arange(n) % 100
    method = build("crd", side("s", [], 64, 100), side("t", [], 64, 100), labels, batch_size, nce_k=k, cls=0.0, div=0.0)
    batch = batch_of(labels[:batch_size])
    s = {"logits": torch.zeros(batch_size, 100), "pooled": torch.randn(batch_size, 64, requires_grad=True)}
    known = {x.untyped_storage().data_ptr() for x in method.buffers()}
    with Largest(known) as largest:
        terms, s_all, t_all = run(method, s, dict(s), batch)
        terms["crd"].backward()
        method.after_step(s_all, t_all, batch)
    assert torch.isfinite(terms["crd"])
    assert largest.bytes <= 64 * 2**20


def _rank(rank: int, folder: str) -> None:
    """One of two processes, each with half of the samples; both met sample 7."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        bank, criterion = banks(), NCECriterion(20, 0.1)
        v = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(rank))
        bank.update(torch.tensor([[1, 7, 3], [7, 11, 5]])[rank], v[0], v[1])
        scores = 0.1 * torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(rank))
        criterion(*scores)
        torch.save(
            {"bank": bank.state_dict(), "z": criterion.state_dict(), "v": v, "scores": scores}, f"{folder}/{rank}.pt"
        )
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_keep_equal_banks(commands, tmp_path):
    code = "import sys; from tests.crd.test_crd import _rank; _rank(int(sys.argv[1]), sys.argv[2])"
    ranks = [subprocess.Popen([commands.python, "-c", code, str(rank), str(tmp_path)], cwd=ROOT) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    a, b = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(a["bank"][k].equal(b["bank"][k]) for k in a["bank"])
    alone = banks()
    alone.update(torch.tensor([1, 7, 3, 7, 11, 5]), *torch.cat([a["v"], b["v"]], 1))
    assert alone.memory_v1.equal(a["bank"]["memory_v1"]) and alone.memory_v2.equal(a["bank"]["memory_v2"])
    assert a["z"]["z1"].equal(b["z"]["z1"])
    z1 = 20 * torch.cat([a["scores"], b["scores"]], 1)[0].div(0.1).exp().mean()
    torch.testing.assert_close(a["z"]["z1"], z1)
