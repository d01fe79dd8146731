"""Quantisation-aware training: in training, convolutions and linear layers compute as they will in int8.

Weights are rounded to int8 symmetrically, with a scale for each output channel, and inputs to 8 bits with one scale of
their batch (Jacob et al., CVPR 2018, section 3); gradients pass the rounding straight through (Bengio et al., 2013). A
batch norm after a convolution scales its output channels, which commutes with such weight scales, so it can be folded
after training. Keys and shapes of the state dict do not change. Evaluation runs in float: a run reports the float
network of its checkpoint, and scripts/export_student.py --int8 measures the int8 network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.option import RESULT, Config, option


@dataclass(frozen=True)
class QuantizeConfig(Config):
    """Whether training rounds as int8 does."""

    heading = "quantisation-aware training"

    quantize: str = option(
        "none",
        "int8: in training, round weights and inputs of the student's layers as int8 will; add --pretrained STUDENT "
        "to start from a finished student",
        choices=("none", "int8"),
        role=RESULT,
    )

    def __bool__(self) -> bool:
        return self.quantize != "none"


def passing(x: Tensor, rounded: Tensor) -> Tensor:
    """The values of `rounded` with the gradient of x."""
    return x + (rounded - x).detach()


def int8_weight(weight: Tensor) -> Tensor:
    """[O, ...] on the grid of int8, -127 to 127, with a scale for each output channel."""
    w = weight.float()
    scale = w.detach().abs().flatten(1).amax(1).clamp(min=1e-12) / 127
    scale = scale.view(-1, *[1] * (w.ndim - 1))
    return passing(w, (w / scale).round() * scale).to(weight.dtype)


def int8_input(x: Tensor) -> Tensor:
    """Rounded to a grid of 256 values between minimum and maximum of the batch, including 0."""
    values = x.float()
    low, high = torch.aminmax(values.detach())
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-12)
    zero = (-low / scale).round()
    steps = ((values / scale).round() + zero).clamp(0, 255) - zero
    return passing(values, steps * scale).to(x.dtype)


class _Rounding(nn.Module):
    """In training, the layer's forward with rounded inputs and weights."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        compute: Any = nn.functional.linear if isinstance(self, nn.Linear) else self._conv_forward
        return compute(int8_input(x), int8_weight(self.weight), self.bias)  # type: ignore[arg-type]


LAYERS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Linear)
ROUNDING = {kind: type(f"Rounding{kind.__name__}", (_Rounding, kind), {}) for kind in LAYERS}


def make_rounding(modules: Iterable[nn.Module]) -> None:
    """Turn the layers inside into rounding ones, in place; hooks, parameters and names do not change."""
    for module in modules:
        for layer in module.modules():
            layer.__class__ = ROUNDING.get(type(layer), type(layer))
