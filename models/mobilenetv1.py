"""MobileNetV1 for ImageNet (Howard et al., 2017, table 1); state-dict keys as in timm's mobilenetv1_100.

ReLU as in the paper and in the distillation literature, where timm has ReLU6. Stage maps are the last ones of strides
4, 8, 16 and 32, after their ReLU; `_preact` is its input.
"""

from __future__ import annotations

from torch import Tensor, nn

from core.protocols import ModelSpec, Tap
from models._common import conv3x3, global_pool, imagenet_spec, init_convs

STEM = 32
STAGES = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))  # channels, blocks, stride of the first


class SeparableConv(nn.Module):
    """3x3 depthwise and 1x1, each with batch norm and ReLU."""

    def __init__(self, c_in: int, c_out: int, stride: int, tapped: bool):
        super().__init__()
        self.conv_dw = nn.Conv2d(c_in, c_in, 3, stride, padding=1, groups=c_in, bias=False)
        self.bn1 = nn.BatchNorm2d(c_in)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv_pw = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.relu2 = nn.ReLU(inplace=not tapped)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv_dw(x)))
        return self.relu2(self.bn2(self.conv_pw(x)))


class MobileNetV1(nn.Module):
    """[B, 3, H, W] -> [B, num_classes]; the last map has 1/32 of the input's size."""

    def __init__(self, num_classes: int = 1000):
        super().__init__()
        self.conv_stem = conv3x3(3, STEM, stride=2)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.relu = nn.ReLU()
        groups, c = [], STEM
        for channels, n, stride in STAGES:
            units = [SeparableConv(channels if i else c, channels, 1 if i else stride, i == n - 1) for i in range(n)]
            groups.append(nn.Sequential(*units))
            c = channels
        self.blocks = nn.Sequential(*groups)
        self.pool = global_pool()
        self.classifier = nn.Linear(c, num_classes)
        init_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.blocks(self.relu(self.bn1(self.conv_stem(x))))))


mobilenet_v1: ModelSpec = imagenet_spec(
    "MobileNetV1",
    MobileNetV1,
    stem="relu",
    stages=[f"blocks.{i}" for i in (1, 2, 3, 4)],
    preact=[Tap(f"blocks.{i}.{STAGES[i][1] - 1}.relu2", side="input") for i in (1, 2, 3, 4)],
    pooled=Tap("pool", kind="vector"),
    head="classifier",
    chain=("conv_stem", "bn1", "relu", *(f"blocks.{i}" for i in range(len(STAGES))), "pool", "classifier"),
)
