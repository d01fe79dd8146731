"""MobileNetV2 for CIFAR (Sandler et al., CVPR 2018); state-dict keys as in RepDistiller and SimKD.

Deviations of the published code, kept: the first block has its 1x1 expansion although that is one, the second group has
stride 1, ReLU in place of ReLU6, widths int(c * width) while the last convolution always has 1280 channels. Stage maps
are linear bottlenecks, with no activation behind them; published code answers preact=True with the same maps, so
`_preact` names them again.
"""

from __future__ import annotations

from torch import Tensor, nn

from helper.protocols import ModelSpec, Tap
from models.common import cifar_spec, conv3x3, global_pool, init_convs

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
    """1x1 expansion, 3x3 depthwise, linear 1x1; a shortcut where neither size nor channels change."""

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


class MobileNetV2(nn.Module):
    """[B, 3, H, W] -> [B, num_classes]; maps of 1/2, 1/2, 1/4, 1/8 and 1/16 of the input's size."""

    def __init__(self, width: float, num_classes: int = 100):
        super().__init__()
        c = int(32 * width)
        self.conv1 = nn.Sequential(conv3x3(3, c, stride=2), nn.BatchNorm2d(c), nn.ReLU())
        groups = []
        for expansion, channels, blocks, stride in SETTINGS:
            c_out = int(channels * width)
            first = InvertedResidual(c, c_out, stride, expansion)
            groups.append(
                nn.Sequential(first, *[InvertedResidual(c_out, c_out, 1, expansion) for _ in range(blocks - 1)])
            )
            c = c_out
        self.blocks = nn.Sequential(*groups)
        self.conv2 = nn.Sequential(
            nn.Conv2d(c, LAST_WIDTH, 1, bias=False), nn.BatchNorm2d(LAST_WIDTH), nn.ReLU(inplace=True)
        )
        self.pool = global_pool()
        self.classifier = nn.Sequential(nn.Linear(LAST_WIDTH, num_classes))
        init_convs(self)
        nn.init.normal_(self.classifier[0].weight, std=0.01)
        nn.init.zeros_(self.classifier[0].bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.conv2(self.blocks(self.conv1(x)))))


def _spec(name: str, width: float) -> ModelSpec:
    stages = {f"stage{i}": Tap(f"blocks.{end}") for i, end in enumerate(STAGE_ENDS, 1)}
    return cifar_spec(
        name,
        MobileNetV2,
        width=width,
        stem="conv1",
        head="classifier.0",
        stages=stages,
        preact={f"{stage}_preact": tap for stage, tap in stages.items()},
        learning_rate=0.01,
    )


mobilenetv2_0_5 = _spec("MobileNetV2", 0.5)
mobilenetv2_1_0 = _spec("MobileNetV2_1_0", 1.0)
