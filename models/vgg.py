"""VGG with batch norm for CIFAR (Simonyan and Zisserman, ICLR 2015); state-dict keys as in RepDistiller and SimKD.

Five blocks of 3x3 convolutions, one linear layer. Stage maps are taken after a block's last ReLU and before pooling;
`_preact` is the input of that ReLU.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from core.protocols import ModelSpec, Tap
from models._common import cifar_spec, conv3x3, global_pool, init_convs

WIDTHS = (64, 128, 256, 512, 512)


class PoolOf64(nn.MaxPool2d):
    """Pools maps of 8 px alone: those of the fourth block at images of 64 px, as published. A module of the chain, so
    that the rest of the network can be run from a stage at this size, too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.shape[2] == 8 else x


class VGG(nn.Module):
    """[B, 3, H, W] -> [B, num_classes]. convs: the number of convolutions in each of the five blocks."""

    def __init__(self, convs: tuple[int, int, int, int, int], num_classes: int = 100):
        super().__init__()
        c_in = (3, *WIDTHS)
        self.block0 = block(c_in[0], WIDTHS[0], convs[0])
        self.block1 = block(c_in[1], WIDTHS[1], convs[1])
        self.block2 = block(c_in[2], WIDTHS[2], convs[2])
        self.block3 = block(c_in[3], WIDTHS[3], convs[3])
        self.block4 = block(c_in[4], WIDTHS[4], convs[4])
        self.relu0, self.relu1, self.relu2, self.relu3, self.relu4 = (nn.ReLU() for _ in range(5))
        self.down, self.down3 = nn.MaxPool2d(2), PoolOf64(2)
        self.pool = global_pool()
        self.classifier = nn.Linear(WIDTHS[4], num_classes)
        init_convs(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.relu0(self.block0(x)))
        x = self.down(self.relu1(self.block1(x)))
        x = self.down(self.relu2(self.block2(x)))
        x = self.down3(self.relu3(self.block3(x)))
        x = self.relu4(self.block4(x))
        return self.classifier(self.pool(x))


def block(c_in: int, c_out: int, convs: int) -> nn.Sequential:
    """conv, BN, ReLU, ..., conv, BN: the network has the last ReLU, so that its input and output can be tapped."""
    layers: list[nn.Module] = []
    for i in range(convs):
        layers += [conv3x3(c_out if i else c_in, c_out, bias=True), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


def _spec(name: str, convs: tuple[int, int, int, int, int]) -> ModelSpec:
    return cifar_spec(
        name,
        partial(VGG, convs=convs),
        stem="relu0",
        head="classifier",
        stages=[f"relu{i}" for i in (1, 2, 3, 4)],
        preact=[Tap(f"relu{i}", side="input") for i in (1, 2, 3, 4)],
        chain=(
            *(part for i in (0, 1, 2) for part in (f"block{i}", f"relu{i}", "down")),
            *("block3", "relu3", "down3", "block4", "relu4", "pool", "classifier"),
        ),
    )


vgg8 = _spec("vgg8", (1, 1, 1, 1, 1))
vgg11 = _spec("vgg11", (1, 1, 2, 2, 2))
vgg13 = _spec("vgg13", (2, 2, 2, 2, 2))
vgg16 = _spec("vgg16", (2, 2, 3, 3, 3))
vgg19 = _spec("vgg19", (2, 2, 4, 4, 4))
