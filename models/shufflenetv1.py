"""ShuffleNetV1 with three groups for CIFAR (Zhang et al., CVPR 2018); state-dict keys as in RepDistiller and SimKD.

Kept deviations of the published code: a 1x1 stem of stride 1, and a ReLU after the depthwise convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.protocols import ModelSpec, Tap
from models._common import MOBILE, cifar_spec, global_pool, shuffle

STEM, WIDTHS, BLOCKS, GROUPS = 24, (240, 480, 960), (4, 8, 4), 3


class Unit(nn.Module):
    """Grouped 1x1, channel shuffle, 3x3 depthwise, grouped 1x1.

    With stride 2 the pooled input is concatenated with the result (c_out counts both), otherwise the input is added.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, tapped: bool):
        super().__init__()
        hidden, self.groups = c_out // 4, 1 if c_in == STEM else GROUPS  # the stem is too narrow to be grouped
        self.conv1 = nn.Conv2d(c_in, hidden, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(hidden, c_out, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.relu3 = nn.ReLU(inplace=not tapped)

    def forward(self, x: Tensor) -> Tensor:
        out = shuffle(self.relu1(self.bn1(self.conv1(x))), self.groups)
        out = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(out)))))
        if self.shortcut is None:
            return self.relu3(out + x)
        return torch.cat([self.relu3(out), self.shortcut(x)], dim=1)  # a mean of a ReLU's outputs needs no ReLU


class ShuffleNetV1(nn.Module):
    """[B, 3, H, W] -> [B, num_classes]; the three stages halve the size. PyTorch's default initialisation."""

    def __init__(self, num_classes: int = 100):
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU()
        self.layer1 = stage(STEM, WIDTHS[0], BLOCKS[0])
        self.layer2 = stage(WIDTHS[0], WIDTHS[1], BLOCKS[1])
        self.layer3 = stage(WIDTHS[1], WIDTHS[2], BLOCKS[2])
        self.pool = global_pool()
        self.linear = nn.Linear(WIDTHS[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.linear(self.pool(self.layer3(self.layer2(self.layer1(x)))))


def stage(c_in: int, c_out: int, blocks: int, stride: int = 2) -> nn.Sequential:
    # with stride 2, c_in of the channels come from the shortcut
    first = Unit(c_in, c_out - c_in if stride == 2 else c_out, stride, tapped=False)
    return nn.Sequential(first, *[Unit(c_out, c_out, 1, tapped=i == blocks - 1) for i in range(1, blocks)])


shuffle_v1: ModelSpec = cifar_spec(
    "ShuffleV1",
    ShuffleNetV1,
    stem="relu",
    head="linear",
    stages=("layer1", "layer2", "layer3"),
    preact=[Tap(f"layer{i}.{n - 1}.relu3", side="input") for i, n in enumerate(BLOCKS, 1)],
    chain=("conv1", "bn1", "relu", "layer1", "layer2", "layer3", "pool", "linear"),
    published=MOBILE,
)
