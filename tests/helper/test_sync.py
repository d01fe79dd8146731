"""No step waits for the device: a copy to the host, or a shape that depends on values, fails here at run time.

Nor does a graph of its loss, if compiled, hold for one epoch or step alone.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helper.evaluation.metrics import Meter
from tests.distiller_zoo.test_contract import B, repeats
from tests.support.cases import ALL
from tests.support.contract import PROGRESS, make_step

WAITS = {  # operators that must know a value before the host can go on
    torch.ops.aten._local_scalar_dense,
    torch.ops.aten.nonzero,
    torch.ops.aten.masked_select,
    torch.ops.aten.equal,
    torch.ops.aten.is_nonzero,
    torch.ops.aten.unique_dim,
    torch.ops.aten._unique2,
}


class NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in WAITS, f"{func} waits for the device"
        if func.overloadpacket is torch.ops.aten.index:  # a mask as an index is a hidden nonzero
            masks = [i for i in args[1] if i is not None and i.dtype == torch.bool]
            assert not masks, "indexing with a mask waits for the device"
        return func(*args, **(kwargs or {}))


def refuse_copies_to_the_host(monkeypatch):
    def refuse(name):
        def method(*args, **kwargs):
            raise AssertionError(f"Tensor.{name}() waits for the device")

        return method

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, refuse(name))


class Timeless:
    """Stands in for the progress that a compiled loss is given: a number that it reads becomes part of the graph."""

    def __getattr__(self, name):
        raise AssertionError(f"the loss reads progress.{name}, and would be compiled again whenever that changes")


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow if repeats(c) else ()) for c in ALL])
def test_no_step_waits(case, monkeypatch):
    method, cfg, student, teacher, data = ALL[case]
    step = make_step(method, cfg, student, teacher, data, B)
    step.train()
    if not step.method.follows_time:
        terms = step.objective.loss_terms
        step.objective.loss_terms = lambda size, s, t, part, progress, weights: terms(
            size, s, t, part, Timeless(), weights
        )
    meter, batch = Meter(torch.device("cpu")), data.batch()
    step(batch, PROGRESS)  # a live teacher looks at its first logits once
    refuse_copies_to_the_host(monkeypatch)
    with NoWaiting():
        result = step(batch, PROGRESS)
        meter.update(result.loss, result.logits, result.target, result.terms, 0)


def test_the_guard_notices():
    x = torch.rand(3)
    for wait in (lambda: x.sum().item(), lambda: x[x > 0.5], lambda: torch.nonzero(x)):
        with pytest.raises(AssertionError, match="waits"), NoWaiting():
            wait()
