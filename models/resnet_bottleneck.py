"""ResNet50 for CIFAR: ImageNet's stages behind a 3x3 stem without pooling; state-dict keys as in RepDistiller.

The bottleneck (He et al., CVPR 2016, figure 5) has its stride on the 3x3 convolution. Stage maps are taken after the
last ReLU; `_preact` is the input of that ReLU. RepDistiller calls it ResNet50; here that name is ImageNet's network.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from core.protocols import ModelSpec, Tap
from models._common import cifar_spec, conv3x3, global_pool, init_convs

BLOCKS, WIDTHS, EXPANSION = (3, 4, 6, 3), (64, 128, 256, 512), 4


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 to four times the width, and a shortcut, which is a 1x1 convolution if the shape changes."""

    def __init__(self, c_in: int, width: int, stride: int, tapped: bool):
        super().__init__()
        c_out = width * EXPANSION
        self.conv1, self.bn1 = nn.Conv2d(c_in, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, c_out, 1, bias=False), nn.BatchNorm2d(c_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        self.relu1, self.relu2 = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        self.relu3 = nn.ReLU(inplace=not tapped)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(out)))))
        return self.relu3(out + self.shortcut(x))


class ResNet(nn.Module):
    """[B, 3, H, W] -> [B, num_classes]; stages have stride 1, 2, 2, 2."""

    def __init__(self, num_classes: int = 100, blocks: tuple[int, int, int, int] = BLOCKS):
        super().__init__()
        self.conv1 = conv3x3(3, WIDTHS[0])
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU()
        c_in = (WIDTHS[0], *[EXPANSION * width for width in WIDTHS])
        self.layer1 = stage(c_in[0], WIDTHS[0], blocks[0], stride=1)
        self.layer2 = stage(c_in[1], WIDTHS[1], blocks[1], stride=2)
        self.layer3 = stage(c_in[2], WIDTHS[2], blocks[2], stride=2)
        self.layer4 = stage(c_in[3], WIDTHS[3], blocks[3], stride=2)
        self.pool = global_pool()
        self.linear = nn.Linear(c_in[4], num_classes)
        init_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(self.pool(x))


def stage(c_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    c_out = width * EXPANSION
    return nn.Sequential(
        *[Bottleneck(c_out if i else c_in, width, 1 if i else stride, tapped=i == blocks - 1) for i in range(blocks)]
    )


def _spec(name: str, blocks: tuple[int, int, int, int]) -> ModelSpec:
    return cifar_spec(
        name,
        partial(ResNet, blocks=blocks),
        stem="relu",
        head="linear",
        stages=("layer1", "layer2", "layer3", "layer4"),
        preact=[Tap(f"layer{i}.{n - 1}.relu3", side="input") for i, n in enumerate(blocks, 1)],
        chain=("conv1", "bn1", "relu", "layer1", "layer2", "layer3", "layer4", "pool", "linear"),
    )


resnet50_cifar = _spec("ResNet50_cifar", BLOCKS)
resnet18_bottleneck = _spec("ResNet18_bottleneck", (2, 2, 2, 2))  # of DPCD, only for its auxiliary heads
