"""ImageNet ShuffleNetV2: torchvision's, whose units keep channels_last and have a last ReLU that can be tapped.

Imported when such a network is built, as it needs torchvision. Keys and values are torchvision's, bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import shufflenetv2

from models._common import shuffle

BLOCKS = (4, 8, 4)


class Unit(shufflenetv2.InvertedResidual):
    """Two branches side by side. tapped: the last ReLU acts on both; the first branch ends with a ReLU anyway."""

    tapped = False

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.branch2[-1] = nn.Identity()
        self.last_relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            kept, x = x.chunk(2, dim=1)
        else:
            kept = self.branch1(x)
        x = self.branch2(x)
        if self.tapped:
            return shuffle(self.last_relu(torch.cat([kept, x], dim=1)), 2)
        return shuffle(torch.cat([kept, self.last_relu(x)], dim=1), 2)


def build(widths: tuple[int, ...], num_classes: int) -> nn.Module:
    """[B, 3, H, W] -> [B, num_classes]. widths: stem, three stages, last convolution."""
    net = shufflenetv2.ShuffleNetV2(list(BLOCKS), list(widths), num_classes, Unit)
    for stage in (net.stage2, net.stage3, net.stage4):
        stage[-1].tapped = True
    return net
