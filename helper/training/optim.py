"""Optimisers and parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from core.protocols import UserError
from helper.training.step import MakeOptimizer

OPTIMIZERS = ("sgd", "nesterov", "adam", "adamw", "rmsprop")


def sgd(momentum: float, weight_decay: float, lr: float, fused: bool = True) -> MakeOptimizer:
    """The published optimiser: SGD on everything that trains, batch norm and biases included."""
    return optimizer("sgd", momentum, weight_decay, lr, fused=fused)


def optimizer(
    name: str,
    momentum: float,
    weight_decay: float,
    lr: float,
    norm_weight_decay: float | None = None,
    fused: bool = True,
) -> MakeOptimizer:
    """One of OPTIMIZERS, as torch has it; rmsprop with torchvision's alpha and eps of 0.9 and 0.0316.

    norm_weight_decay: of parameters with one dimension (normalisation layers and biases); None treats all alike.
    fused: in one kernel, where torch has one; otherwise as torch does it by default.
    """
    fast = fused or None
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": partial(torch.optim.SGD, momentum=momentum, fused=fast),
        "nesterov": partial(torch.optim.SGD, momentum=momentum, nesterov=True, fused=fast),
        "adam": partial(torch.optim.Adam, fused=fast),
        "adamw": partial(torch.optim.AdamW, fused=fast),
        "rmsprop": partial(torch.optim.RMSprop, momentum=momentum, alpha=0.9, eps=0.0316),
    }

    def make(params: Sequence[nn.Parameter], scale: float) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = [{"params": list(params), "lr_scale": scale}]
        if norm_weight_decay is not None:
            flat = [p for p in params if p.ndim <= 1]
            groups[0]["params"] = [p for p in params if p.ndim > 1]
            groups.append({"params": flat, "lr_scale": scale, "weight_decay": norm_weight_decay})
        return kinds[name](groups, lr=lr * scale, weight_decay=weight_decay)

    return make


Multipliers = tuple[float, float]  # of the learning rate, of the weight decay


def tsm_multipliers(model: nn.Module, head: nn.Module, head_at_five: bool) -> dict[nn.Parameter, Multipliers]:
    """TSM's rule (Lin et al., ICCV 2019, published code): biases of convolutions and linear layers at twice the rate,
    without decay; batch norm without decay; the classifier at five times (its bias ten times) if wanted."""
    found: dict[nn.Parameter, Multipliers] = {}
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        if isinstance(module, _BatchNorm | nn.GroupNorm):
            found |= dict.fromkeys(own.values(), (1.0, 0.0))
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            times = 5.0 if head_at_five and module is head else 1.0
            found[module.weight] = (times, 1.0)
            if module.bias is not None:
                found[module.bias] = (2.0 * times, 0.0)
        else:
            raise UserError(
                f"--param_groups tsm knows convolutions, linear layers and batch norm, and {path} is a "
                f"{type(module).__name__}: use --param_groups one"
            )
    return found


def regroup(optimizer: Optimizer, multipliers: dict[nn.Parameter, Multipliers]) -> None:
    """Split the optimiser's only group by multipliers; what they do not name (a method's own layers) keeps the plain
    settings."""
    (whole,) = optimizer.param_groups
    parts: dict[Multipliers, list[nn.Parameter]] = {}
    for p in whole["params"]:
        parts.setdefault(multipliers.get(p, (1.0, 1.0)), []).append(p)
    optimizer.param_groups.clear()
    for (rate, decay), params in parts.items():
        optimizer.add_param_group(
            {
                **whole,
                "params": params,
                "lr": whole["lr"] * rate,
                "lr_scale": whole.get("lr_scale", 1.0) * rate,
                "weight_decay": whole["weight_decay"] * decay,
            }
        )
