"""Shared by the families: initialisation, pooling, and templates of their specs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from core.protocols import ModelSpec, Published, Tap

CIFAR_MEAN = (0.5071, 0.4867, 0.4408)
CIFAR_STD = (0.2675, 0.2565, 0.2761)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def conv3x3(c_in: int, c_out: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel_size=3, stride=stride, padding=1, bias=bias)


def global_pool() -> nn.Sequential:
    """[B, C, H, W] -> [B, C], the mean over H and W of any size."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def shuffle(x: Tensor, groups: int) -> Tensor:
    """[B, C, H, W], the channels of the groups interleaved (Zhang et al., CVPR 2018, section 3.1)."""
    b, c, h, w = x.shape
    if x.is_contiguous(memory_format=torch.channels_last):  # keep channels_last: a reshape across C would undo it
        last = x.permute(0, 2, 3, 1).reshape(b, h, w, groups, c // groups)
        return last.transpose(3, 4).reshape(b, h, w, c).permute(0, 3, 1, 2)
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


def init_convs(model: nn.Module) -> None:
    """Convolutions ~ N(0, 2 / (k * k * C_out)) with bias 0 (He et al., ICCV 2015, eq. 14); batch norm: 1 and 0."""
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            if m.bias is not None:
                nn.init.zeros_(m.bias)


def below(
    prefix: str, adapt: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Weights of a backbone alone, for a network that holds it as `prefix`; weights of that network do not change.

    adapt: the key map of the backbone.
    """
    if any(k.startswith(prefix) for k in state):
        return dict(state)
    return {prefix + k: v for k, v in (adapt or dict)(state).items()}


def _family_spec(
    name: str,
    build: Callable[..., nn.Module],
    *,
    stem: str,
    stages: Sequence[str],
    preact: Sequence[Tap] = (),
    others: Mapping[str, Tap] | None = None,
    pooled: Tap | None = None,
    head: str,
    **more: Any,
) -> ModelSpec:
    """The template of the families: stem, stages, then the pooled vector before the head.

    stages: module paths, shallow to deep. preact: one tap for each stage, or none. others: taps in addition to these.
    pooled: by default the input of the head. more: fields of ModelSpec.
    """
    names = [f"stage{i}" for i in range(1, len(stages) + 1)]
    maps = {stage: Tap(module) for stage, module in zip(names, stages, strict=True)}
    before = {f"{stage}_preact": tap for stage, tap in zip(names, preact, strict=bool(preact))}
    vector = pooled or Tap(head, kind="vector", side="input")
    taps = {"stem": Tap(stem), **maps, **before, **(others or {}), "pooled": vector}
    return ModelSpec(name, build, taps, ("stem", *names, "pooled"), head, **more)


cifar_spec = partial(_family_spec, pooled=Tap("pool", kind="vector"), mean=CIFAR_MEAN, std=CIFAR_STD)
imagenet_spec = partial(_family_spec, input_shape=(3, 224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD)
MOBILE = Published(learning_rate=0.01)  # of small networks with depthwise convolutions, on CIFAR


def with_drop_path(spec: ModelSpec, rate: float) -> ModelSpec | None:
    """The network whose residual branches are skipped in training, the deepest with this probability (stochastic depth,
    Huang et al., ECCV 2016); None where it has no branch that can be."""
    argument = "stochastic_depth_prob" if spec.name.startswith("torchvision:") else "drop_path_rate"
    build = partial(spec.build, **{argument: rate})
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                model = build(num_classes=2)
        except TypeError:  # it has no such argument
            return None
        except (NotImplementedError, RuntimeError):  # it needs real numbers to be built
            model = build(num_classes=2)
    kinds = {type(module).__name__ for module in model.modules()}
    return dataclasses.replace(spec, build=build) if kinds & {"DropPath", "StochasticDepth"} else None


def without_inplace(model: nn.Module) -> nn.Module:
    """Turn in-place activations off: their inputs may be tapped."""
    for module in model.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False
    return model
