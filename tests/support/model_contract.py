"""What every tapped network must keep, whoever built it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from core.protocols import ModelSpec
from core.taps import TappedNet
from tests.golden.rule import rand


def tapped(
    spec: ModelSpec, model: torch.nn.Module | None = None, want: tuple[str, ...] | None = None, num_classes: int = 100
) -> TappedNet:
    """The network with all of its taps (or those in `want`) and no normalisation: inputs are normalised already."""
    spec = dataclasses.replace(spec, mean=None, std=None)
    model = spec(num_classes=num_classes) if model is None else model
    return TappedNet(model, spec, spec.taps if want is None else want)


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Networks built here have whatever weights their memory holds: for those that are overwritten, or never read."""
    with contextlib.ExitStack() as stack:
        for name in ("normal_", "uniform_", "zero_", "fill_"):
            stack.enter_context(mock.patch.object(Tensor, name, lambda self, *args, **kwargs: self))
        yield


def zeros(spec: ModelSpec, num_classes: int) -> dict[str, Tensor]:
    """A state dict of zeros: nothing is drawn."""
    with undrawn():
        return {k: torch.zeros_like(v) for k, v in spec(num_classes=num_classes).state_dict().items()}


def _scaled(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, *rest: object) -> Tensor:
    shape = (-1, *[1] * (x.ndim - 2))
    return x * weight.view(shape) + bias.view(shape)


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
    """Networks are built and run on the meta device. A batch norm is a scale there: PyTorch takes the real one apart in
    Python, and is ten times as slow."""
    with undrawn(), torch.device("meta"), mock.patch.object(F, "batch_norm", _scaled):
        yield


def check_training(net: TappedNet, size: int) -> dict[str, torch.Tensor]:
    """Each tap fires once, nothing writes over a tapped tensor, and gradients reach every tap and parameter.

    A network on the meta device is held to the same, but for the gradients' values. Returns the features.
    """
    spec = net.spec
    net.train()
    fired, version = dict.fromkeys(spec.taps, 0), {}

    def count(name, side, module, args, output):
        fired[name] += 1
        version[name] = (args[0] if side == "input" else output)._version

    for name, tap in spec.taps.items():
        net.model.get_submodule(tap.module).register_forward_hook(
            lambda *call, name=name, side=tap.side: count(name, side, *call)
        )
    device = next(net.parameters()).device
    out = net({"image": rand((2, 3, size, size), 1).to(device)})
    assert fired == dict.fromkeys(spec.taps, 1)
    assert out.keys() == {*spec.taps, "logits"}
    assert {k: out[k]._version for k in spec.taps} == version
    for name in spec.stages:
        assert out[name].ndim == 4
        if f"{name}_preact" in out:
            assert out[f"{name}_preact"].shape == out[name].shape
    width = next(m.in_features for m in net.head.modules() if isinstance(m, torch.nn.Linear))
    assert out["pooled"].shape == (2, width)

    for tensor in out.values():
        tensor.retain_grad()
    sum(v.square().mean() for v in out.values()).backward()
    assert all(v.grad is not None for v in out.values())
    assert all(p.grad is not None for p in net.parameters())
    assert device.type == "meta" or all(p.grad.isfinite().all() for p in net.parameters())
    return out


def check_layout(net: TappedNet, size: int) -> dict[str, torch.Tensor]:
    """channels_last stays channels_last at every map and changes no value. Returns what the plain layout gives."""
    net.eval()
    x = rand((2, 3, size, size), 2)
    with torch.no_grad():
        plain = net({"image": x})
        net.model.to(memory_format=torch.channels_last)
        last = net({"image": x.contiguous(memory_format=torch.channels_last)})
    for name in plain:
        scale = plain[name].square().mean().sqrt().item()
        torch.testing.assert_close(last[name], plain[name], rtol=1e-4, atol=1e-4 * scale, msg=name)
        if plain[name].ndim == 4:
            assert last[name].is_contiguous(memory_format=torch.channels_last), name
    return plain
