"""ImageNet networks under the names of SemCKD and SimKD, built by torchvision (imported with the first of them).

State-dict keys are torchvision's, so its published weights load as they are: `model_dict["ResNet34"](pretrained=True)`.
`_preact` is the input of a stage's last ReLU; the stages of MobileNetV2 are linear, so `_preact` names the same maps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from core.protocols import ModelSpec, Tap, UserError
from models._common import imagenet_spec, without_inplace


def _build(
    make: Callable[..., nn.Module],
    published: str | None,
    head: str,
    num_classes: int = 1000,
    pretrained: bool | str = False,
    **options: Any,
) -> nn.Module:
    """published: torchvision's name of the same network; None: it has none."""
    model = without_inplace(make(num_classes=num_classes, **options))
    if pretrained:
        if published is None:
            raise UserError(
                "doubled ResNets and ResNet10 have no published weights: train one, or leave --pretrained out"
            )
        from models.external import load_published

        load_published(model, published, pretrained, head)
    return model


def _resnet(blocks: tuple[int, ...], **options: Any) -> nn.Module:
    from models._torchvision import build_resnet

    return build_resnet(blocks, **options)


def _shufflenet(widths: tuple[int, ...], **options: Any) -> nn.Module:
    from models._torchvision import build_shufflenet

    return build_shufflenet(widths, **options)


def _torchvision(name: str, **options: Any) -> nn.Module:
    from torchvision import models

    return models.get_model(name, weights=None, **options)


def _resnet_spec(name: str, published: str | None, blocks: tuple[int, ...], **options: Any) -> ModelSpec:
    return imagenet_spec(
        name,
        partial(_build, partial(_resnet, blocks, **options), published, "fc"),
        stem="maxpool",
        stages=[f"layer{i}" for i in (1, 2, 3, 4)],
        preact=[Tap(f"layer{i}.{n - 1}.last_relu", side="input") for i, n in enumerate(blocks, 1)],
        head="fc",
        chain=("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"),
    )


def _shuffle_spec(name: str, published: str, widths: tuple[int, ...]) -> ModelSpec:
    return imagenet_spec(
        name,
        partial(_build, partial(_shufflenet, widths), published, "fc"),
        stem="maxpool",
        stages=[f"stage{i}" for i in (2, 3, 4)],
        preact=[Tap(f"stage{i}.{n - 1}.last_relu", side="input") for i, n in ((2, 4), (3, 8), (4, 4))],
        head="fc",
    )


def _vgg_spec(name: str, published: str, block_ends: tuple[int, ...]) -> ModelSpec:
    """block_ends: positions of the five last ReLUs; maps are taken before pooling, as in the CIFAR VGGs.

    The published `is_feat` lists cut the layers at arbitrary places. The classifier that a student reuses is all three
    layers, which read the 25088 values of `pooled`.
    """
    stem, *stages = [f"features.{i}" for i in block_ends]
    return imagenet_spec(
        name,
        partial(_build, partial(_torchvision, published), published, "classifier"),
        stem=stem,
        stages=stages,
        preact=[Tap(module, side="input") for module in stages],
        head="classifier",
    )


resnet10x2 = _resnet_spec("ResNet10x2", None, (1, 1, 1, 1), doubled=True)
resnet18 = _resnet_spec("ResNet18", "resnet18", (2, 2, 2, 2))
resnet34 = _resnet_spec("ResNet34", "resnet34", (3, 4, 6, 3))
resnet50 = _resnet_spec("ResNet50", "resnet50", (3, 4, 6, 3), bottleneck=True)
resnet18x2 = _resnet_spec("ResNet18x2", None, (2, 2, 2, 2), doubled=True)
resnet34x2 = _resnet_spec("ResNet34x2", None, (3, 4, 6, 3), doubled=True)
resnext50_32x4d = _resnet_spec(
    "resnext50_32x4d", "resnext50_32x4d", (3, 4, 6, 3), bottleneck=True, groups=32, width_per_group=4
)
wrn_50_2 = _resnet_spec("wrn_50_2", "wide_resnet50_2", (3, 4, 6, 3), bottleneck=True, width_per_group=128)
mobilenet_v2 = imagenet_spec(
    "MobileNetV2_Imagenet",
    partial(_build, partial(_torchvision, "mobilenet_v2"), "mobilenet_v2", "classifier.1"),
    stem="features.0",
    stages=[f"features.{i}" for i in (3, 6, 13, 17)],
    preact=[Tap(f"features.{i}") for i in (3, 6, 13, 17)],
    pooled=Tap("classifier", kind="vector", side="input"),
    head="classifier.1",
)
shufflenet_v2 = _shuffle_spec("ShuffleV2_Imagenet", "shufflenet_v2_x1_0", (24, 116, 232, 464, 1024))
shufflenet_v2_x0_5 = _shuffle_spec("shufflenet_v2_x0_5", "shufflenet_v2_x0_5", (24, 48, 96, 192, 1024))
shufflenet_v2_x2_0 = _shuffle_spec("shufflenet_v2_x2_0", "shufflenet_v2_x2_0", (24, 244, 488, 976, 2048))
vgg11 = _vgg_spec("vgg11_imagenet", "vgg11_bn", (2, 6, 13, 20, 27))
vgg13 = _vgg_spec("vgg13_imagenet", "vgg13_bn", (5, 12, 19, 26, 33))
