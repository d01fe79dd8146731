"""CIFAR ResNets (He et al., CVPR 2016, section 4.2), plain and widened; state-dict keys as in RepDistiller and SimKD.

resnet{depth}x{k} has k times the channels in its stages; x4 also doubles the stem (32), `double` doubles all of x4.
Stage maps are taken after the last ReLU; `_preact` is the input of that ReLU, the sum of branch and shortcut.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from core.protocols import ModelSpec, Tap
from models._common import cifar_spec, conv3x3, global_pool, init_convs

Widths = tuple[int, int, int, int]  # stem, stage1, stage2, stage3


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution if the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int, tapped: bool):
        super().__init__()
        self.conv1 = conv3x3(c_in, c_out, stride)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(c_out, c_out)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.relu2 = nn.ReLU(inplace=not tapped)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + self.downsample(x))


class ResNet(nn.Module):
    """[B, 3, H, W] -> [B, num_classes]; stages have stride 1, 2, 2 and (depth - 2) / 6 blocks each."""

    def __init__(self, depth: int, widths: Widths, num_classes: int = 100):
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = conv3x3(3, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.layer1 = stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = stage(widths[2], widths[3], blocks, stride=2)
        self.pool = global_pool()
        self.fc = nn.Linear(widths[3], num_classes)
        init_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.pool(x))


def stage(c_in: int, c_out: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *[BasicBlock(c_out if i else c_in, c_out, 1 if i else stride, tapped=i == blocks - 1) for i in range(blocks)]
    )


def _spec(name: str, depth: int, widths: Widths) -> ModelSpec:
    last = (depth - 2) // 6 - 1
    return cifar_spec(
        name,
        partial(ResNet, depth=depth, widths=widths),
        stem="relu",
        head="fc",
        stages=("layer1", "layer2", "layer3"),
        preact=[Tap(f"layer{i}.{last}.relu2", side="input") for i in (1, 2, 3)],
        chain=("conv1", "bn1", "relu", "layer1", "layer2", "layer3", "pool", "fc"),
    )


X1, X2, X4, X8 = (16, 16, 32, 64), (16, 32, 64, 128), (32, 64, 128, 256), (64, 128, 256, 512)

resnet8 = _spec("resnet8", 8, X1)
resnet14 = _spec("resnet14", 14, X1)
resnet20 = _spec("resnet20", 20, X1)
resnet32 = _spec("resnet32", 32, X1)
resnet38 = _spec("resnet38", 38, X1)
resnet44 = _spec("resnet44", 44, X1)
resnet56 = _spec("resnet56", 56, X1)
resnet110 = _spec("resnet110", 110, X1)
resnet116 = _spec("resnet116", 116, X1)
resnet14x2 = _spec("resnet14x2", 14, X2)
resnet38x2 = _spec("resnet38x2", 38, X2)
resnet110x2 = _spec("resnet110x2", 110, X2)
resnet8x4 = _spec("resnet8x4", 8, X4)
resnet14x4 = _spec("resnet14x4", 14, X4)
resnet32x4 = _spec("resnet32x4", 32, X4)
resnet38x4 = _spec("resnet38x4", 38, X4)
resnet8x4_double = _spec("resnet8x4_double", 8, X8)
