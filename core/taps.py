"""Feature taps by forward hooks: read intermediate tensors of a plain model without changing it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.utils.hooks import RemovableHandle

from core.machine import fresh
from core.protocols import Features, ModelSpec, Side, Tap, UserError, first_line


def normalised(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x - mean) / std. On a CPU, images [B, C, H, W] in channels_last memory are computed along whole rows [W * C],
    which vectorises: a fifth of the time, the same bits."""
    by_pixel = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    if not by_pixel or x.device.type != "cpu" or x.dtype != torch.float32 or x.requires_grad or is_compiling():
        return (x - mean) / std
    rows = x.permute(0, 2, 3, 1).flatten(2)
    mean, std = (v.flatten().repeat(x.shape[3]) for v in (mean, std))
    values = torch.sub(rows, mean, out=fresh(rows.shape)).div_(std)
    return values.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)


class TappedNet(nn.Module):
    """A model, its input normalisation, and hooks on the requested taps.

    forward takes Batch.inputs (images in [0, 1]) and returns {"logits": [B, K], tap name: tensor, ...}, without logits
    if the spec is headless. Hooks collect only during this forward, so other code may call a submodule (such as a
    reused head) again.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, spec: ModelSpec, want: Iterable[str] = ()):
        super().__init__()
        self.model, self.spec = model, spec
        self.want = frozenset(want) - {"logits"}
        unknown = self.want - spec.taps.keys()
        if unknown:
            raise UserError(f"{spec.name} has no tap {', '.join(sorted(unknown))}; it has {', '.join(spec.taps)}")
        if spec.mean is not None and spec.std is not None:
            shape = (-1, *[1] * min(2, len(spec.input_shape) - 1))  # frames of a clip come before their channels
            # not in the state dict: published checkpoints have no such keys, and the spec holds the values
            self.register_buffer("mean", torch.tensor(spec.mean).view(shape), persistent=False)
            self.register_buffer("std", torch.tensor(spec.std).view(shape), persistent=False)
        self._collecting, self._clips = False, 0
        self._kept: Features = {}
        self._inserted: dict[str, RemovableHandle] = {}
        for name in sorted(self.want):
            tap = spec.taps[name]
            model.get_submodule(tap.module).register_forward_hook(partial(self._keep, name, tap))

    @property
    def head(self) -> nn.Module:
        return self.model.get_submodule(self.spec.head)

    def _keep(self, name: str, tap: Tap, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if not self._collecting:
            return
        if name in self._kept:
            raise RuntimeError(
                f"the module of tap '{name}' of {self.spec.name} was called twice: give each call its own module"
            )
        value = args[0] if tap.side == "input" else output
        if tap.read is not None:
            value = tap.read(module, value)
        self._kept[name] = value.unflatten(0, (self._clips, -1)).mean(1) if tap.per_frame else value

    def insert(self, tap: str, layers: nn.Module) -> None:
        """Insert layers after a tap, replacing earlier ones: map -> (map, features to add to the taps).

        The rest of the network reads their map; the tap itself keeps the output of its module. The caller owns the
        layers, so the state dict of this network does not hold their weights.
        """
        if tap in self._inserted:
            self._inserted[tap].remove()
        module = self.model.get_submodule(self.spec.taps[tap].module)
        self._inserted[tap] = module.register_forward_hook(partial(self._run_inserted, layers))

    def run_from(self, tap: str, x: Tensor) -> Features:
        """Run the rest of the network with x as the map of a stage: the later stage maps, and "logits"."""
        stages = {self.spec.taps[name].module: name for name in self.spec.stages}
        features: Features = {}
        for path in self.spec.chain[self.spec.chain.index(self.spec.taps[tap].module) + 1 :]:
            module = self.model.get_submodule(path)
            x = module(x.flatten(1) if isinstance(module, nn.Linear) else x)
            if path in stages:
                features[stages[path]] = x
        return {**features, "logits": x}

    def _run_inserted(self, layers: nn.Module, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        output, features = layers(output)
        if self._collecting:
            self._kept.update(features)
        return output

    def idle(self) -> Iterator[nn.Parameter]:
        """Parameters of branches that are not requested."""
        for name in self.spec.branches:
            if name not in self.want:
                for module in self.model.parts(name):  # type: ignore[operator]
                    yield from module.parameters()

    def forward(self, inputs: Mapping[str, Tensor], branches: Collection[str] | None = None) -> Features:
        """branches: which of the requested branches to compute; None: all of them."""
        asked = [b for b in self.spec.branches if b in self.want and (branches is None or b in branches)]
        x = inputs[self.spec.input]
        if self.spec.view is not None:
            x = resized(x, self.spec.view, self.spec.published.interpolation)
        if self.spec.mean is not None:
            x = normalised(x, self.mean, self.std)
        self._kept, self._collecting, self._clips = {}, True, x.shape[0]
        try:
            logits = self.model(x, asked) if asked else self.model(x)
        finally:
            kept, self._kept, self._collecting = self._kept, {}, False
        skipped = set(self.spec.branches) - set(asked)
        silent = [name for name in self.want if name not in kept and name not in skipped]
        if silent:
            raise RuntimeError(f"modules of these taps of {self.spec.name} were never called: {sorted(silent)}")
        return kept if self.spec.headless else {"logits": logits, **kept}


def without_taps(model: nn.Module) -> nn.Module:
    """The model itself, after removing the hooks of its wrappers."""
    for module in model.modules():
        for number, hook in list(module._forward_hooks.items()):
            if isinstance(hook, partial) and getattr(hook.func, "__func__", None) is TappedNet._keep:
                del module._forward_hooks[number]
    return model


def resized(x: Tensor, size: int, mode: str) -> Tensor:
    """Images [B, C, H, W] in [0, 1] at another size, antialiased when they shrink; channels_last is kept."""
    if x.shape[2:] == (size, size):
        return x
    return F.interpolate(x, (size, size), mode=mode, align_corners=False, antialias=True).clamp(0, 1)


@torch.no_grad()
def probe(net: TappedNet, shapes: Mapping[str, tuple[int, ...]]) -> Side:
    """Per-sample shapes, from one dry run in eval mode: batch-norm statistics do not change.

    shapes: modality -> per-sample input shape in the data set.
    """
    if net.spec.input not in shapes:
        raise UserError(f"{net.spec.name} reads '{net.spec.input}', but the data set has {', '.join(shapes)}")
    was_training = net.training
    net.eval()
    device = next(net.parameters()).device
    shape = shapes[net.spec.input]
    try:
        noise = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
        features = net({net.spec.input: noise.to(device)})
        pools_last = _pools_last(net, features)
    except (RuntimeError, AssertionError) as error:  # transformers assert their image size
        if shape == net.spec.input_shape:
            raise
        size = "x".join(map(str, shape))
        raise UserError(f"{net.spec.name} cannot run on inputs of {size}: {first_line(error)}") from error
    finally:
        net.train(was_training)
    shapes = {k: tuple(v.shape[1:]) for k, v in features.items()}
    return Side(net.spec, net.head, shapes, tuple(shape), pools_last, net)


def _pools_last(net: TappedNet, features: Features) -> bool:
    """Side.pools_last, from features in eval mode."""
    tap = net.spec.last_map
    if net.spec.headless or tap not in features or features[tap].ndim != 4 or features[tap].is_meta:
        return True
    logits = features["logits"]
    try:
        again = net.head(features[tap].mean((2, 3)))
    except (RuntimeError, IndexError):  # such as the norm over channels of ConvNeXt's
        return False
    return again.shape == logits.shape and bool((again - logits).abs().max() <= 1e-3 * logits.abs().max())
