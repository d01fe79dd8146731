"""ShuffleNetV2 for CIFAR (Ma et al., ECCV 2018); state-dict keys as in RepDistiller and SimKD.

Kept deviations of the published code: a 1x1 stem of stride 1, and 3, 7, 3 basic units after the down units.
Stage maps are taken after the shuffle; `_preact` is the concatenation before ReLU and shuffle.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from core.protocols import ModelSpec, Tap
from models._common import MOBILE, cifar_spec, global_pool, shuffle

STEM, BLOCKS = 24, (3, 7, 3)
Widths = tuple[int, int, int, int]  # three stages, last convolution


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)


class Unit(nn.Module):
    """One half of the channels passes, the other goes through 1x1, 3x3 depthwise, 1x1."""

    def __init__(self, channels: int, tapped: bool):
        super().__init__()
        half, self.tapped = channels // 2, tapped
        self.conv1, self.bn1 = nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = _depthwise(half, 1), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU(inplace=True)
        self.relu2 = nn.ReLU(inplace=not tapped)

    def forward(self, x: Tensor) -> Tensor:
        kept, x = x.chunk(2, dim=1)
        x = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        x = self.bn3(self.conv3(x))
        if self.tapped:  # all channels pass its ReLU; the first half is the output of one, so the values are the same
            return shuffle(self.relu2(torch.cat([kept, x], dim=1)), 2)
        return shuffle(torch.cat([kept, self.relu2(x)], dim=1), 2)


class DownUnit(nn.Module):
    """Half the size (stride 2): depthwise and 1x1 and 1x1, depthwise and 1x1, each with half of the new channels."""

    def __init__(self, c_in: int, c_out: int, stride: int = 2):
        super().__init__()
        half = c_out // 2
        self.conv1, self.bn1 = _depthwise(c_in, stride), nn.BatchNorm2d(c_in)
        self.conv2, self.bn2 = nn.Conv2d(c_in, half, 1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(c_in, half, 1, bias=False), nn.BatchNorm2d(half)
        self.conv4, self.bn4 = _depthwise(half, stride), nn.BatchNorm2d(half)
        self.conv5, self.bn5 = nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half)
        self.relu1, self.relu2, self.relu3 = (nn.ReLU(inplace=True) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        left = self.relu1(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(self.relu2(self.bn3(self.conv3(x)))))
        right = self.relu3(self.bn5(self.conv5(right)))
        return shuffle(torch.cat([left, right], dim=1), 2)


class ShuffleNetV2(nn.Module):
    """[B, 3, H, W] -> [B, num_classes]; the three stages halve the size. PyTorch's default initialisation."""

    def __init__(self, widths: Widths, num_classes: int = 100):
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu1 = nn.ReLU()
        self.layer1 = stage(STEM, widths[0], BLOCKS[0])
        self.layer2 = stage(widths[0], widths[1], BLOCKS[1])
        self.layer3 = stage(widths[1], widths[2], BLOCKS[2])
        self.conv2 = nn.Conv2d(widths[2], widths[3], 1, bias=False)
        self.bn2 = nn.BatchNorm2d(widths[3])
        self.relu2 = nn.ReLU(inplace=True)
        self.pool = global_pool()
        self.linear = nn.Linear(widths[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(self.relu2(self.bn2(self.conv2(x)))))


def stage(c_in: int, c_out: int, blocks: int, stride: int = 2) -> nn.Sequential:
    return nn.Sequential(DownUnit(c_in, c_out, stride), *[Unit(c_out, tapped=i == blocks - 1) for i in range(blocks)])


def _spec(name: str, widths: Widths) -> ModelSpec:
    return cifar_spec(
        name,
        partial(ShuffleNetV2, widths=widths),
        stem="relu1",
        head="linear",
        stages=("layer1", "layer2", "layer3"),
        preact=[Tap(f"layer{i}.{n}.relu2", side="input") for i, n in enumerate(BLOCKS, 1)],
        chain=("conv1", "bn1", "relu1", "layer1", "layer2", "layer3", "conv2", "bn2", "relu2", "pool", "linear"),
        published=MOBILE,
    )


shuffle_v2 = _spec("ShuffleV2", (116, 232, 464, 1024))
shuffle_v2_1_5 = _spec("ShuffleV2_1_5", (176, 352, 704, 1024))
