"""ImageNet ResNets: torchvision's, with a separate last ReLU in each block, so that its input and output can be tapped.

Imported when such a network is built, as it needs torchvision. Keys and values are torchvision's, bit for bit.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.models import resnet


class BasicBlock(resnet.BasicBlock):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.last_relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.last_relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(resnet.Bottleneck):
    """1x1, 3x3 (which has the stride), 1x1 and a shortcut; `relu` runs twice, `last_relu` once."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.last_relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        return self.last_relu(out + (x if self.downsample is None else self.downsample(x)))


def stage(c_in: int, width: int, blocks: int, stride: int, bottleneck: bool) -> nn.Sequential:
    """A stage as torchvision builds it, for any number of input channels."""
    kind = Bottleneck if bottleneck else BasicBlock
    c_out, downsample = width * kind.expansion, None
    if stride != 1 or c_in != c_out:
        downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
    return nn.Sequential(kind(c_in, width, stride, downsample), *[kind(c_out, width) for _ in range(blocks - 1)])


class DoubledResNet(resnet.ResNet):
    """All four stages twice as wide, after the ordinary stem of 64 channels (SimKD's x2 networks)."""

    def __init__(self, block: Any, layers: list[int], num_classes: int = 1000):
        super().__init__(block, layers, num_classes)
        self.fc = nn.Linear(2 * self.fc.in_features, num_classes)

    def _make_layer(self, block: Any, planes: int, *args: Any, **options: Any) -> nn.Sequential:
        return super()._make_layer(block, 2 * planes, *args, **options)


def build(blocks: tuple[int, ...], num_classes: int, bottleneck: bool, doubled: bool, **options: int) -> nn.Module:
    """[B, 3, H, W] -> [B, num_classes]. options: groups and width_per_group, as torchvision names them."""
    kind = DoubledResNet if doubled else resnet.ResNet
    return kind(Bottleneck if bottleneck else BasicBlock, list(blocks), num_classes=num_classes, **options)
