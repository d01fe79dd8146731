"""torchvision's networks with what torchvision lacks: in each block of a ResNet or ShuffleNetV2 a last ReLU that can be
tapped; units that keep channels_last; a ViT for images of any size that its patches divide.

Imported when such a network is built, as it needs torchvision. Keys and values are torchvision's, bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet, shufflenetv2
from torchvision.models.vision_transformer import Encoder, VisionTransformer

from models._common import shuffle
from models._transformer import refuse_cut_patches, resized_positions


class BasicBlock(resnet.BasicBlock):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.last_relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.last_relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(resnet.Bottleneck):
    """1x1, 3x3 (which has the stride), 1x1 and a shortcut; `relu` runs twice, `last_relu` once."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.last_relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        return self.last_relu(out + (x if self.downsample is None else self.downsample(x)))


def resnet_stage(c_in: int, width: int, blocks: int, stride: int, bottleneck: bool) -> nn.Sequential:
    """A stage as torchvision builds it, for any number of input channels."""
    kind = Bottleneck if bottleneck else BasicBlock
    c_out, downsample = width * kind.expansion, None
    if stride != 1 or c_in != c_out:
        downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
    return nn.Sequential(kind(c_in, width, stride, downsample), *[kind(c_out, width) for _ in range(blocks - 1)])


class DoubledResNet(resnet.ResNet):
    """All four stages twice as wide, after the ordinary stem of 64 channels (SimKD's x2 networks)."""

    def __init__(self, block: Any, layers: list[int], num_classes: int = 1000):
        super().__init__(block, layers, num_classes)
        self.fc = nn.Linear(2 * self.fc.in_features, num_classes)

    def _make_layer(self, block: Any, planes: int, *args: Any, **options: Any) -> nn.Sequential:
        return super()._make_layer(block, 2 * planes, *args, **options)


def build_resnet(
    blocks: tuple[int, ...], num_classes: int, bottleneck: bool = False, doubled: bool = False, **options: int
) -> nn.Module:
    """[B, 3, H, W] -> [B, num_classes]. options: groups and width_per_group, as torchvision names them."""
    kind = DoubledResNet if doubled else resnet.ResNet
    return kind(Bottleneck if bottleneck else BasicBlock, list(blocks), num_classes=num_classes, **options)


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


def build_shufflenet(widths: tuple[int, ...], num_classes: int) -> nn.Module:
    """[B, 3, H, W] -> [B, num_classes]. widths: stem, three stages, last convolution."""
    net = shufflenetv2.ShuffleNetV2([4, 8, 4], list(widths), num_classes, Unit)
    for stage in (net.stage2, net.stage3, net.stage4):
        stage[-1].tapped = True
    return net


class AnySizeEncoder(Encoder):
    grid: tuple[int, int]  # of the current image

    def forward(self, input: Tensor) -> Tensor:
        tokens = input + resized_positions(self.pos_embedding, 1, self.grid)
        return self.ln(self.layers(self.dropout(tokens)))


class AnySizeViT(VisionTransformer):
    """Forward interpolates the position embedding, so a checkpoint fits at any size."""

    def forward(self, x: Tensor) -> Tensor:
        refuse_cut_patches(x.shape[2], x.shape[3], self.patch_size)
        maps = self.conv_proj(x)
        self.encoder.grid = (maps.shape[2], maps.shape[3])
        tokens = maps.flatten(2).transpose(1, 2)
        tokens = self.encoder(torch.cat([self.class_token.expand(x.shape[0], -1, -1), tokens], 1))
        return self.heads(tokens[:, 0])


def any_size(model: VisionTransformer) -> AnySizeViT:
    """The same network as an instance of the class above, with its modules, parameters and settings."""
    new = AnySizeViT.__new__(AnySizeViT)
    new.__dict__ = model.__dict__
    encoder = AnySizeEncoder.__new__(AnySizeEncoder)
    encoder.__dict__ = model.encoder.__dict__
    new.encoder = encoder
    return new
