"""Networks that read a window of a body-worn sensor [B, C, L]: C axes, L samples.

All three end in VSKD's semantic layer, 300 values after a ReLU: the input of the classifier (`pooled`, `semantic`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.protocols import ModelSpec, Published, Tap, UserError
from models._common import below, global_pool, without_inplace
from models._gaf import gramian_field

SEMANTIC = 300
SHAPE = (3, 224)  # an accelerometer's three axes; 224 samples make a picture of the published size
PATCH = 8  # samples per token


class Semantic(nn.Sequential):
    """[B, D] -> [B, 300], not negative."""

    def __init__(self, width: int):
        super().__init__(nn.Linear(width, SEMANTIC), nn.ReLU())


class GafResNet18(nn.Module):
    """ResNet-18 on the Gramian angular summation field of a window: one channel per axis, L pixels per side.

    The field is part of the network, so that an exported student reads sensor values. As published, its pixels are in
    [0, 1] and not normalised further. Parameters for three axes and 27 classes: 11,338,539.
    """

    def __init__(self, num_classes: int, shape: Sequence[int] | None = None, kind: str = "gasf"):
        super().__init__()
        from models._torchvision import build_resnet  # needs torchvision

        self.kind = kind
        axes = (shape or SHAPE)[0]
        self.trunk = without_inplace(build_resnet((2, 2, 2, 2), 1))
        if axes != 3:
            first = self.trunk.conv1
            self.trunk.conv1 = nn.Conv2d(axes, first.out_channels, 7, 2, 3, bias=False)
            nn.init.kaiming_normal_(self.trunk.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.trunk.fc = Semantic(512)
        self.fc = nn.Linear(SEMANTIC, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        picture = gramian_field(x, self.kind).contiguous(memory_format=torch.channels_last)
        return self.fc(self.trunk(picture))


def _conv(c_in: int, c_out: int, size: int, stride: int = 1) -> nn.Sequential:
    """Convolution along time; maps are [B, C, 1, L], so that methods that compare maps can pool them."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, (1, size), (1, stride), (0, size // 2), bias=False), nn.BatchNorm2d(c_out), nn.ReLU()
    )


class SensorCNN(nn.Module):
    """Nine convolutions along time, the length halved five times, on windows scaled axis by axis by batch norm."""

    def __init__(self, num_classes: int, shape: Sequence[int] | None = None, width: int = 32):
        super().__init__()
        axes = (shape or SHAPE)[0]
        self.scale = nn.BatchNorm2d(axes, affine=False)
        self.stem = _conv(axes, width, 7, 2)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False), 1):
            self.add_module(f"stage{i}", nn.Sequential(_conv(a, b, 5, 2), _conv(b, b, 5)))
        self.pool = global_pool()
        self.semantic = Semantic(8 * width)
        self.fc = nn.Linear(SEMANTIC, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.scale(x[:, :, None]))
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))  # type: ignore[operator]
        return self.fc(self.semantic(self.pool(x)))


class Layer(nn.Module):
    """Attention and an MLP, each after a layer norm and with a shortcut; [B, P, D]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class SensorTransformer(nn.Module):
    """Three layers of four heads on tokens of eight samples, with learned positions; the tokens are averaged."""

    def __init__(self, num_classes: int, shape: Sequence[int] | None = None, width: int = 96, depth: int = 3):
        super().__init__()
        axes, length = shape or SHAPE
        if length < PATCH:
            raise UserError(f"--window {length} is too short for sensor_transformer: give at least {PATCH}")
        self.scale = nn.BatchNorm1d(axes, affine=False)
        self.embed = nn.Conv1d(axes, width, PATCH, PATCH)
        self.position = nn.Parameter(torch.randn(1, length // PATCH, width) * 0.02)
        self.layers = nn.Sequential(*(Layer(width, 4) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.semantic = Semantic(width)
        self.fc = nn.Linear(SEMANTIC, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(self.scale(x)).transpose(1, 2) + self.position
        return self.fc(self.semantic(self.norm(self.layers(tokens)).mean(1)))


MAPS = ("stage1", "stage2", "stage3", "stage4")


def _spec(
    name: str, build: type[nn.Module], taps: dict[str, Tap], feats: tuple[str, ...], semantic: str, **more: Any
) -> ModelSpec:
    vector = Tap(semantic, "vector")
    taps = {**taps, "pooled": vector, "semantic": vector}
    feats = (*feats, "pooled")
    return ModelSpec(name, build, taps, feats, "fc", input="sensor", input_shape=SHAPE, fits=True, **more)


resnet18_gaf = _spec(
    "resnet18_gaf",
    GafResNet18,
    {
        "stem": Tap("trunk.maxpool"),
        **{name: Tap(f"trunk.layer{i}") for i, name in enumerate(MAPS, 1)},
        **{f"{name}_preact": Tap(f"trunk.layer{i}.1.last_relu", side="input") for i, name in enumerate(MAPS, 1)},
        "pooled512": Tap("trunk.fc", "vector", "input"),
    },
    ("stem", *MAPS),
    "trunk.fc",
    published=Published(adapt=partial(below, "trunk.", None), fresh=("trunk.fc",)),
)
sensor_cnn = _spec(
    "sensor_cnn",
    SensorCNN,
    {
        "stem": Tap("stem"),
        **{name: Tap(name) for name in MAPS},
        **{f"{name}_preact": Tap(f"{name}.1.2", side="input") for name in MAPS},
    },
    ("stem", *MAPS),
    "semantic",
)
sensor_transformer = _spec("sensor_transformer", SensorTransformer, {"tokens": Tap("norm", "tokens")}, (), "semantic")
