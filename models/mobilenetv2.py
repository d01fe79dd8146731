"""MobileNetV2 for CIFAR (Sandler et al., CVPR 2018); state-dict keys as in RepDistiller and SimKD.

Kept deviations of the published code: the first block has a 1x1 expansion although its factor is 1; the second group
has stride 1; ReLU instead of ReLU6; widths int(c * width), but the last convolution always has 1280 channels. Stage
maps are linear bottlenecks without an activation; the published code returns the same maps for preact=True, so
`_preact` names them again.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from torch import Tensor, nn

from core.protocols import ModelSpec, Tap
from models._common import MOBILE, cifar_spec, conv3x3, global_pool, init_convs

LAST_WIDTH = 1280
SETTINGS = (  # expansion, channels, blocks, stride of the first
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STAGE_ENDS = (1, 2, 4, 6)  # position in SETTINGS of each stage's last group


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1; a shortcut if neither size nor channels change."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int):
        super().__init__()
        hidden = c_in * expansion
        self.is_residual = stride == 1 and c_in == c_out
        self.conv = nn.Sequential(
            nn.Conv2d(c_in, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.is_residual else self.conv(x)


def group(c_in: int, c_out: int, blocks: int, stride: int, expansion: int) -> nn.Sequential:
    first = InvertedResidual(c_in, c_out, stride, expansion)
    return nn.Sequential(first, *[InvertedResidual(c_out, c_out, 1, expansion) for _ in range(blocks - 1)])


def last_conv(c_in: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, LAST_WIDTH, 1, bias=False), nn.BatchNorm2d(LAST_WIDTH), nn.ReLU(inplace=True))


class MobileNetV2(nn.Module):
    """[B, 3, H, W] -> [B, num_classes]; maps of 1/2, 1/2, 1/4, 1/8 and 1/16 of the input's size, twice that with a
    stem of stride 1. nested: whether the classifier's keys are classifier.0.* (RepDistiller) or classifier.*
    (HSAKD, DPCD)."""

    def __init__(self, width: float, num_classes: int = 100, stem_stride: int = 2, nested: bool = True):
        super().__init__()
        c = int(32 * width)
        self.conv1 = nn.Sequential(conv3x3(3, c, stride=stem_stride), nn.BatchNorm2d(c), nn.ReLU())
        groups = []
        for expansion, channels, blocks, stride in SETTINGS:
            groups.append(group(c, int(channels * width), blocks, stride, expansion))
            c = int(channels * width)
        self.blocks = nn.Sequential(*groups)
        self.conv2 = last_conv(c)
        self.pool = global_pool()
        linear = nn.Linear(LAST_WIDTH, num_classes)
        self.classifier: nn.Module = nn.Sequential(linear) if nested else linear
        init_convs(self)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.conv2(self.blocks(self.conv1(x)))))


def _spec(name: str, width: float, head: str = "classifier.0", **options: Any) -> ModelSpec:
    stages = [f"blocks.{end}" for end in STAGE_ENDS]
    return cifar_spec(
        name,
        partial(MobileNetV2, width=width, **options),
        stem="conv1",
        head=head,
        stages=stages,
        preact=[Tap(stage) for stage in stages],
        chain=("conv1", *(f"blocks.{i}" for i in range(STAGE_ENDS[-1] + 1)), "conv2", "pool", "classifier"),
        published=MOBILE,
    )


def _flat(name: str, stem_stride: int, twin: str, owner: str) -> ModelSpec:
    """The plain network of HSAKD or DPCD: same keys, another stride of the stem."""
    spec = _spec(name, 0.5, "classifier", stem_stride=stem_stride, nested=False)
    note = f"stem of stride {stem_stride}, as in {owner}"
    return dataclasses.replace(spec, published=dataclasses.replace(MOBILE, twin=twin, note=note))


mobilenetv2_0_5 = _spec("MobileNetV2", 0.5)
mobilenetv2_1_0 = _spec("MobileNetV2_1_0", 1.0)
mobilenetv2_hsakd = _flat("mobilenetV2", 1, "mobilenetV2_dpcd", "HSAKD")
mobilenetv2_dpcd = _flat("mobilenetV2_dpcd", 2, "mobilenetV2", "DPCD")
