"""BN-Inception (Ioffe and Szegedy, ICML 2015, table 1), with the layer names of the converted Caffe network.

Two files of ImageNet weights are public: `bn_inception-9f5701afb96c8044.pth` (classifier `fc`, batch norm as [1, C])
and `bn_inception-239d2248.pth` (classifier `last_linear`); `published_keys` reads both. They were trained on BGR pixels
in 0..255 minus (104, 117, 128): the spec's normalisation converts RGB in [0, 1] to this range, and the network
reverses the channels, so that the weights need no change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from core.protocols import ModelSpec, Published, Tap
from models._common import global_pool


class Block(NamedTuple):
    """Widths of one block; `single` 0: no 1x1 branch, and the other branches halve the map. pool: "avg" or "max"."""

    name: str
    c_in: int
    single: int
    reduce: int
    conv: int
    double_reduce: int
    double: int
    pool: str
    project: int

    @property
    def halves(self) -> bool:
        return self.single == 0

    @property
    def c_out(self) -> int:
        return self.single + self.conv + self.double + (self.c_in if self.halves else self.project)


BLOCKS = (
    Block("3a", 192, 64, 64, 64, 64, 96, "avg", 32),
    Block("3b", 256, 64, 64, 96, 64, 96, "avg", 64),
    Block("3c", 320, 0, 128, 160, 64, 96, "max", 0),
    Block("4a", 576, 224, 64, 96, 96, 128, "avg", 128),
    Block("4b", 576, 192, 96, 128, 96, 128, "avg", 128),
    Block("4c", 576, 160, 128, 160, 128, 160, "avg", 128),
    Block("4d", 608, 96, 128, 192, 160, 192, "avg", 128),
    Block("4e", 608, 0, 128, 192, 192, 256, "max", 0),
    Block("5a", 1056, 352, 192, 320, 160, 224, "avg", 128),
    Block("5b", 1024, 352, 192, 320, 192, 224, "max", 128),
)


class BNInception(nn.Module):
    """[B, 3, H, W] RGB, normalised as the spec says -> [B, num_classes]. Every convolution has a bias, batch norm and
    ReLU; every pool rounds its size up. `inception_{block}_output` returns the joined branches."""

    def __init__(self, num_classes: int = 1000):
        super().__init__()
        self._conv("conv1_7x7_s2", "conv1_relu_7x7", 3, 64, 7, stride=2)
        self.pool1_3x3_s2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self._conv("conv2_3x3_reduce", "conv2_relu_3x3_reduce", 64, 64, 1)
        self._conv("conv2_3x3", "conv2_relu_3x3", 64, 192, 3)
        self.pool2_3x3_s2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        for block in BLOCKS:
            self._block(block)
        self.global_pool = global_pool()
        self.last_linear = nn.Linear(BLOCKS[-1].c_out, num_classes)

    def _conv(self, name: str, relu: str, c_in: int, c_out: int, size: int, stride: int = 1) -> None:
        self.add_module(name, nn.Conv2d(c_in, c_out, size, stride, padding=size // 2))
        self.add_module(f"{name}_bn", nn.BatchNorm2d(c_out))
        self.add_module(relu, nn.ReLU())

    def _block(self, b: Block) -> None:
        stride = 2 if b.halves else 1

        def add(part: str, c_in: int, c_out: int, size: int, stride: int = 1) -> None:
            self._conv(f"inception_{b.name}_{part}", f"inception_{b.name}_relu_{part}", c_in, c_out, size, stride)

        if b.single:
            add("1x1", b.c_in, b.single, 1)
        add("3x3_reduce", b.c_in, b.reduce, 1)
        add("3x3", b.reduce, b.conv, 3, stride)
        add("double_3x3_reduce", b.c_in, b.double_reduce, 1)
        add("double_3x3_1", b.double_reduce, b.double, 3)
        add("double_3x3_2", b.double, b.double, 3, stride)
        pool: nn.Module = nn.AvgPool2d(3, 1, padding=1, ceil_mode=True)
        if b.pool == "max":
            pool = nn.MaxPool2d(3, stride, padding=0 if b.halves else 1, ceil_mode=True)
        self.add_module(f"inception_{b.name}_pool", pool)
        if b.project:
            add("pool_proj", b.c_in, b.project, 1)
        self.add_module(f"inception_{b.name}_output", nn.Identity())

    def _layer(self, name: str, relu: str, x: Tensor) -> Tensor:
        m = self._modules
        return m[relu](m[f"{name}_bn"](m[name](x)))  # type: ignore[misc]

    def _run_block(self, b: Block, x: Tensor) -> Tensor:
        def run(part: str, y: Tensor) -> Tensor:
            return self._layer(f"inception_{b.name}_{part}", f"inception_{b.name}_relu_{part}", y)

        branches = [run("1x1", x)] if b.single else []
        branches.append(run("3x3", run("3x3_reduce", x)))
        branches.append(run("double_3x3_2", run("double_3x3_1", run("double_3x3_reduce", x))))
        pooled = self._modules[f"inception_{b.name}_pool"](x)  # type: ignore[misc]
        branches.append(run("pool_proj", pooled) if b.project else pooled)
        return self._modules[f"inception_{b.name}_output"](torch.cat(branches, 1))  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        x = self._layer("conv1_7x7_s2", "conv1_relu_7x7", x.flip(1))  # RGB -> BGR
        x = self._layer("conv2_3x3_reduce", "conv2_relu_3x3_reduce", self.pool1_3x3_s2(x))
        x = self.pool2_3x3_s2(self._layer("conv2_3x3", "conv2_relu_3x3", x))
        for block in BLOCKS:
            x = self._run_block(block, x)
        return self.last_linear(self.global_pool(x))


def published_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of either public file under the names and in the shapes used here."""
    renamed = {f"last_linear.{k[3:]}" if k.startswith("fc.") else k: v for k, v in state.items()}
    return {k: v[0] if "_bn." in k and v.ndim == 2 and len(v) == 1 else v for k, v in renamed.items()}


# the branches whose maps the VSKD teacher returns, one per block and one before them: taps branch1 to branch11
HOOKED = (
    "conv2_relu_3x3",
    *(f"inception_{b.name}_relu_{'pool_proj' if b.project else 'double_3x3_2'}" for b in BLOCKS),
)

bninception = ModelSpec(
    "bninception",
    BNInception,
    {
        "stem": Tap("conv1_relu_7x7"),
        "stage1": Tap("conv2_relu_3x3"),
        "stage2": Tap("inception_3b_output"),
        "stage3": Tap("inception_4d_output"),
        "stage4": Tap("inception_5b_output"),
        "pooled": Tap("last_linear", "vector", "input"),
        **{f"branch{i}": Tap(module) for i, module in enumerate(HOOKED, 1)},
    },
    feats=("stem", "stage1", "stage2", "stage3", "stage4", "pooled"),
    head="last_linear",
    input_shape=(3, 224, 224),
    mean=(128 / 255, 117 / 255, 104 / 255),
    std=(1 / 255, 1 / 255, 1 / 255),
    published=Published(adapt=published_keys),
)
