"""Auxiliary classifiers on the stages of a network, as HSAKD (Yang et al., IJCAI 2021) and DPCD publish them.

NAME_aux has heads of 4 outputs per class, one for each of four rotations; NAME_aux_dpcd has heads of one output per
class. One wrapper serves every family: head l is a copy of the stages after the l-th, global pooling and a linear
layer; the last head repeats the final stage at stride 1. State-dict keys as published: backbone.*,
auxiliary_classifier.{block_extractor,fc}{l}.*
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import relu_

from core.protocols import ModelSpec, Tap
from models import imagenet, mobilenetv2, resnet, resnet_bottleneck, shufflenetv1, shufflenetv2, vgg, wrn
from models._common import global_pool, init_convs

ROTATIONS = 4


class AuxiliaryClassifier(nn.Module):
    """Heads 1..L. tail: a layer between the stages and the pooling of each head, with the key f"{tail_name}{l}".

    activated: whether a ReLU, which has no key, follows the tail.
    """

    def __init__(
        self,
        extractors: Sequence[nn.Module],
        width: int,
        outputs: int,
        tail: Callable[[], nn.Module] | None = None,
        tail_name: str = "",
        activated: bool = False,
    ):
        super().__init__()
        levels = range(1, len(extractors) + 1)
        self.tail_name, self.activated = tail_name, activated
        for level, extractor in zip(levels, extractors, strict=True):
            self.add_module(f"block_extractor{level}", extractor)
        if tail is not None:
            for level in levels:
                self.add_module(f"{tail_name}{level}", tail())
        for level in levels:
            self.add_module(f"fc{level}", nn.Linear(width, outputs))
        self.pool = global_pool()

    def parts(self, level: int) -> list[nn.Module]:
        """Modules of one head, in order; the pooling before the last one has no parameters."""
        names = [f"block_extractor{level}", *([f"{self.tail_name}{level}"] if self.tail_name else []), f"fc{level}"]
        return [self.get_submodule(name) for name in names]

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Map of stage `level` [B, C, H, W] -> [B, outputs]."""
        *before, linear = self.parts(level)
        for module in before:
            x = module(x)
        return linear(self.pool(relu_(x) if self.activated else x))


class AuxNet(nn.Module):
    """A network and its auxiliary classifiers. forward(x) -> logits of the network alone.

    forward(x, branches) also computes the named heads (aux1, aux2, ...); the outputs of their linear layers are taps.
    stages: module paths, inside the backbone, of the maps that heads 1, 2, ... read.
    """

    def __init__(self, backbone: nn.Module, stages: Sequence[str], auxiliary_classifier: AuxiliaryClassifier):
        super().__init__()
        self.backbone, self.auxiliary_classifier = backbone, auxiliary_classifier
        self._wanted: Collection[int] = ()
        self._maps: dict[int, Tensor] = {}
        for level, path in enumerate(stages, 1):
            backbone.get_submodule(path).register_forward_hook(partial(self._keep, level))

    def _keep(self, level: int, module: nn.Module, args: tuple, output: Tensor) -> None:
        if level in self._wanted:
            self._maps[level] = output

    def parts(self, branch: str) -> list[nn.Module]:
        return self.auxiliary_classifier.parts(_level(branch))

    def forward(self, x: Tensor, branches: Collection[str] = ()) -> Tensor:
        self._maps, self._wanted = {}, sorted(map(_level, branches))
        try:
            logits = self.backbone(x)
            for level in self._wanted:
                self.auxiliary_classifier(self._maps.pop(level), level)
        finally:
            self._maps, self._wanted = {}, ()
        return logits


def _level(branch: str) -> int:
    return int(branch.removeprefix("aux"))


@dataclass(frozen=True)
class Family:
    """How heads are attached to a network. taps: their inputs. heads(outputs) -> AuxiliaryClassifier, initialised."""

    base: ModelSpec
    taps: tuple[str, ...]
    heads: Callable[[int], AuxiliaryClassifier]
    base_dpcd: ModelSpec | None = None  # if DPCD has another network


def remaining_stages(
    stage: Callable[[int, int, int, int], nn.Module], widths: Sequence[int], blocks: Sequence[int], expansion: int = 1
) -> list[nn.Sequential]:
    """The extractors of all heads. stage(c_in, width, blocks, stride): makes a stage of expansion * width channels.
    widths, blocks: of every stage of the network."""
    last = len(widths) - 1
    branches = [
        [stage(expansion * widths[i - 1], widths[i], blocks[i], 2) for i in range(tap + 1, last + 1)]
        for tap in range(last)
    ]
    final = stage(expansion * widths[last], widths[last], blocks[last], 1)
    return [nn.Sequential(*stages) for stages in (*branches, [final])]


def _published_init(heads: AuxiliaryClassifier, linear: str = "zero bias") -> AuxiliaryClassifier:
    """Convolutions as in init_convs(). linear: "zero bias", "small" (N(0, 0.01), zero bias), or "default"."""
    init_convs(heads)
    for name, module in heads.named_children():
        if name.startswith("fc") and linear != "default":
            nn.init.zeros_(module.bias)
            if linear == "small":
                nn.init.normal_(module.weight, std=0.01)
    return heads


def _staged_heads(
    stage: Callable[[int, int, int, int], nn.Module],
    widths: Sequence[int],
    blocks: Sequence[int],
    outputs: int,
    expansion: int = 1,
    linear: str = "zero bias",
    **tail: Any,
) -> AuxiliaryClassifier:
    """Heads of remaining_stages(). linear: as in _published_init(). tail: as in AuxiliaryClassifier."""
    extractors = remaining_stages(stage, widths, blocks, expansion)
    return _published_init(AuxiliaryClassifier(extractors, expansion * widths[-1], outputs, **tail), linear)


def _vgg_heads(convs: Sequence[int], outputs: int) -> AuxiliaryClassifier:
    """Heads 1 to 3 halve the map before every block but the last; head 4 reads the last map and halves nothing."""
    channels = vgg.WIDTHS

    def head(first: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for i in range(first, 5):
            layers += [nn.MaxPool2d(2)] * (i < 4)
            layers += [vgg.block(channels[i - 1], channels[i], convs[i]), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers)

    last = nn.Sequential(
        vgg.block(512, 512, convs[3]), nn.ReLU(inplace=True), vgg.block(512, 512, convs[4]), nn.ReLU(inplace=True)
    )
    return AuxiliaryClassifier([head(1), head(2), head(3), last], 512, outputs)


def _mobile_heads(outputs: int) -> AuxiliaryClassifier:
    settings = mobilenetv2.SETTINGS

    def head(c_in: int, first: int, stride: int | None = None) -> nn.Sequential:
        groups = []
        for expansion, channels, blocks, own_stride in settings[first:]:
            groups.append(mobilenetv2.group(c_in, channels // 2, blocks, stride or own_stride, expansion))
            c_in, stride = channels // 2, None
        return nn.Sequential(*groups)

    extractors = [head(12, 2), head(16, 3), head(48, 5), head(160, 5, stride=1)]
    tail = partial(mobilenetv2.last_conv, 160)
    return _published_init(AuxiliaryClassifier(extractors, mobilenetv2.LAST_WIDTH, outputs, tail, "conv2_"), "small")


def _shuffle_v2_heads(outputs: int) -> AuxiliaryClassifier:
    *widths, last = (116, 232, 464, 1024)
    extractors = remaining_stages(shufflenetv2.stage, widths, shufflenetv2.BLOCKS)
    for extractor in extractors:
        extractor.extend([nn.Conv2d(widths[-1], last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU(inplace=True)])
    return AuxiliaryClassifier(extractors, last, outputs)


THREE, FOUR = ("stage1", "stage2", "stage3"), ("stage1", "stage2", "stage3", "stage4")
VGG_TAPS = ("stem", "stage1", "stage2", "stage4")  # as published: the fourth block is not tapped


def _wrn(base: ModelSpec, depth: int, widen: int) -> Family:
    widths, blocks = (16 * widen, 32 * widen, 64 * widen), 3 * [(depth - 4) // 6]
    tail = {"tail": partial(nn.BatchNorm2d, widths[-1]), "tail_name": "bn", "activated": True}
    return Family(base, THREE, partial(_staged_heads, wrn.Stage, widths, blocks, **tail))


def _resnet(base: ModelSpec, depth: int, widths: Sequence[int]) -> Family:
    return Family(base, THREE, partial(_staged_heads, resnet.stage, widths[1:], 3 * [(depth - 2) // 6]))


def _bottleneck(base: ModelSpec, blocks: Sequence[int]) -> Family:
    stage, widths, expansion = resnet_bottleneck.stage, resnet_bottleneck.WIDTHS, resnet_bottleneck.EXPANSION
    return Family(base, FOUR, partial(_staged_heads, stage, widths, blocks, expansion=expansion, linear="default"))


def _imagenet(base: ModelSpec, blocks: Sequence[int], bottleneck: bool = False) -> Family:
    stage, widths, expansion = partial(_imagenet_stage, bottleneck), (64, 128, 256, 512), 4 if bottleneck else 1
    return Family(base, FOUR, partial(_staged_heads, stage, widths, blocks, expansion=expansion, linear="default"))


def _imagenet_stage(bottleneck: bool, *shape: int) -> nn.Module:
    from models._torchvision import resnet_stage  # needs torchvision

    return resnet_stage(*shape, bottleneck)


SHUFFLE_V1_HEADS = partial(_staged_heads, shufflenetv1.stage, shufflenetv1.WIDTHS, shufflenetv1.BLOCKS)
FAMILIES: Mapping[str, Family] = {
    "wrn_16_1": _wrn(wrn.wrn_16_1, 16, 1),
    "wrn_16_2": _wrn(wrn.wrn_16_2, 16, 2),
    "wrn_40_1": _wrn(wrn.wrn_40_1, 40, 1),
    "wrn_40_2": _wrn(wrn.wrn_40_2, 40, 2),
    "resnet8": _resnet(resnet.resnet8, 8, resnet.X1),
    "resnet20": _resnet(resnet.resnet20, 20, resnet.X1),
    "resnet56": _resnet(resnet.resnet56, 56, resnet.X1),
    "resnet8x4": _resnet(resnet.resnet8x4, 8, resnet.X4),
    "resnet32x4": _resnet(resnet.resnet32x4, 32, resnet.X4),
    "vgg8_bn": Family(vgg.vgg8, VGG_TAPS, partial(_vgg_heads, (1, 1, 1, 1, 1))),
    "vgg13_bn": Family(vgg.vgg13, VGG_TAPS, partial(_vgg_heads, (2, 2, 2, 2, 2))),
    "mobilenetV2": Family(mobilenetv2.mobilenetv2_hsakd, FOUR, _mobile_heads, mobilenetv2.mobilenetv2_dpcd),
    "ShuffleV1": Family(shufflenetv1.shuffle_v1, THREE, SHUFFLE_V1_HEADS),
    "ShuffleV2": Family(shufflenetv2.shuffle_v2, THREE, _shuffle_v2_heads),
    "ResNet18": _bottleneck(resnet_bottleneck.resnet18_bottleneck, (2, 2, 2, 2)),
    "ResNet50": _bottleneck(resnet_bottleneck.resnet50_cifar, resnet_bottleneck.BLOCKS),
    "resnet18_imagenet": _imagenet(imagenet.resnet18, (2, 2, 2, 2)),
    "resnet34_imagenet": _imagenet(imagenet.resnet34, (3, 4, 6, 3)),
    "resnet50_imagenet": _imagenet(imagenet.resnet50, (3, 4, 6, 3), bottleneck=True),
}


def _build(base: ModelSpec, family: Family, per_class: int, num_classes: int = 100) -> nn.Module:
    stages = [base.taps[name].module for name in family.taps]
    return AuxNet(base(num_classes=num_classes), stages, family.heads(per_class * num_classes))


def _spec(name: str, family: Family, per_class: int) -> ModelSpec:
    base = family.base_dpcd if per_class == 1 and family.base_dpcd is not None else family.base
    levels = range(1, len(family.taps) + 1)
    taps = {k: dataclasses.replace(tap, module=f"backbone.{tap.module}") for k, tap in base.taps.items()}
    taps |= {f"aux{i}": Tap(f"auxiliary_classifier.fc{i}", kind="logits") for i in levels}
    return dataclasses.replace(
        base,
        name=name,
        build=partial(_build, base, family, per_class),
        taps=taps,
        head=f"backbone.{base.head}",
        chain=tuple(f"backbone.{path}" for path in base.chain),
        branches=tuple(f"aux{i}" for i in levels),
        # no twin: the number of outputs of the heads distinguishes files of HSAKD and DPCD
        published=dataclasses.replace(base.published, twin=None),
    )


SPECS = {f"{name}_aux": _spec(f"{name}_aux", family, ROTATIONS) for name, family in FAMILIES.items()}
SPECS |= {f"{name}_aux_dpcd": _spec(f"{name}_aux_dpcd", family, 1) for name, family in FAMILIES.items()}


def __getattr__(name: str) -> ModelSpec:
    """Make every network an attribute with its public name, which the registry imports."""
    try:
        return SPECS[name]
    except KeyError:
        raise AttributeError(name) from None
