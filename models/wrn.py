"""Wide ResNets for CIFAR (Zagoruyko and Komodakis, BMVC 2016), without dropout; state-dict keys as in RepDistiller.

wrn_{depth}_{k}. Blocks are pre-activated, so stem and stage maps are raw sums, negative values included; `_preact` is
the stage map after the batch norm that follows it (of the next stage's first block, or the final one); `classified`
is the map that the classifier reads, before pooling.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from core.protocols import ModelSpec, Tap
from models._common import cifar_spec, conv3x3, global_pool, init_convs


class PreactBlock(nn.Module):
    """BN, ReLU, conv, twice. If the channels change, the 1x1 shortcut also reads the activated input."""

    def __init__(self, c_in: int, c_out: int, stride: int, tapped: bool):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.relu1 = nn.ReLU(inplace=not tapped)
        self.conv1 = conv3x3(c_in, c_out, stride)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(c_out, c_out)
        self.convShortcut = None if c_in == c_out else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        return self.conv2(self.relu2(self.bn2(self.conv1(active)))) + shortcut


class Stage(nn.Sequential):
    """Blocks in a row, under the published key prefix `layer`."""

    def __init__(self, c_in: int, c_out: int, blocks: int, stride: int):
        super().__init__()
        self.layer = nn.Sequential(
            *[PreactBlock(c_out if i else c_in, c_out, 1 if i else stride, tapped=i == 0) for i in range(blocks)]
        )


class WideResNet(nn.Module):
    """[B, 3, H, W] -> [B, num_classes]; stages have stride 1, 2, 2 and (depth - 4) / 6 blocks each."""

    def __init__(self, depth: int, widen: int, num_classes: int = 100):
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = conv3x3(3, 16)
        self.block1 = Stage(16, 16 * widen, blocks, stride=1)
        self.block2 = Stage(16 * widen, 32 * widen, blocks, stride=2)
        self.block3 = Stage(32 * widen, 64 * widen, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.relu = nn.ReLU()
        self.pool = global_pool()
        self.fc = nn.Linear(64 * widen, num_classes)
        init_convs(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.pool(self.relu(self.bn1(x))))


def _spec(name: str, depth: int, widen: int) -> ModelSpec:
    return cifar_spec(
        name,
        partial(WideResNet, depth=depth, widen=widen),
        stem="conv1",
        head="fc",
        stages=("block1", "block2", "block3"),
        preact=(Tap("block2.layer.0.bn1"), Tap("block3.layer.0.bn1"), Tap("bn1")),
        others={"classified": Tap("relu")},
        chain=("conv1", "block1", "block2", "block3", "bn1", "relu", "pool", "fc"),
    )


wrn_16_1 = _spec("wrn_16_1", 16, 1)
wrn_16_2 = _spec("wrn_16_2", 16, 2)
wrn_40_1 = _spec("wrn_40_1", 40, 1)
wrn_40_2 = _spec("wrn_40_2", 40, 2)
