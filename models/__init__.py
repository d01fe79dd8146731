"""Networks by public name: `model_dict["resnet8x4"](num_classes=100)` builds one (core.protocols.ModelSpec)."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from core.protocols import ModelSpec
from core.registry import Registry

# name of a network with auxiliary heads, without _aux -> name of the plain network
AUXILIARY = {
    **{name: name for name in ("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2")},
    **{name: name for name in ("resnet8", "resnet20", "resnet56", "resnet8x4", "resnet32x4")},
    "vgg8_bn": "vgg8",
    "vgg13_bn": "vgg13",
    **{name: name for name in ("mobilenetV2", "ShuffleV1", "ShuffleV2")},
    "ResNet18": None,  # it has no name
    "ResNet50": "ResNet50_cifar",
    "resnet18_imagenet": "ResNet18",
    "resnet34_imagenet": "ResNet34",
    "resnet50_imagenet": "ResNet50",
}
# the pairs of HSAKD's online mode: two peers of one network
PAIRS = {
    "WRN_16_2_WRN_16_2": "wrn_16_2_aux",
    "WRN_40_1_WRN_40_1": "wrn_40_1_aux",
    "WRN_40_2_WRN_40_2": "wrn_40_2_aux",
    "resnet20_resnet20": "resnet20_aux",
    "resnet56_resnet56": "resnet56_aux",
    "resnet8x4_resnet8x4": "resnet8x4_aux",
    "resnet32x4_resnet32x4": "resnet32x4_aux",
    "vgg13_vgg13": "vgg13_bn_aux",
    "mbv2_mbv2": "mobilenetV2_aux",
    "shufflev1_shufflev1": "ShuffleV1_aux",
    "shufflev2_shufflev2": "ShuffleV2_aux",
    "resnet18_resnet18": "resnet18_imagenet_aux",
}


def _all_of(module: str, *names: str) -> dict[str, str]:
    """Registry lines of networks that their file calls by their public names."""
    return {name: f"models.{module}:{name}" for name in names}


model_dict = Registry(
    "model",
    {
        **_all_of("resnet", "resnet8", "resnet14", "resnet20", "resnet32", "resnet38", "resnet44", "resnet56"),
        **_all_of("resnet", "resnet110", "resnet116", "resnet14x2", "resnet38x2", "resnet110x2"),
        **_all_of("resnet", "resnet8x4", "resnet14x4", "resnet32x4", "resnet38x4", "resnet8x4_double"),
        **_all_of("wrn", "wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"),
        **_all_of("vgg", "vgg8", "vgg11", "vgg13", "vgg16", "vgg19"),
        "MobileNetV2": "models.mobilenetv2:mobilenetv2_0_5",
        "MobileNetV2_1_0": "models.mobilenetv2:mobilenetv2_1_0",
        "ShuffleV1": "models.shufflenetv1:shuffle_v1",
        "ShuffleV2": "models.shufflenetv2:shuffle_v2",
        "ShuffleV2_1_5": "models.shufflenetv2:shuffle_v2_1_5",
        "ResNet50_cifar": "models.resnet_bottleneck:resnet50_cifar",
        **_all_of("vit", "vit_micro_cifar", "vit_tiny_cifar", "vit_small_cifar"),
        **_all_of("vit", "vit_micro_cifar_distilled", "vit_tiny_cifar_distilled"),
        **_all_of("vit", "vit_micro_64", "vit_tiny_64", "vit_micro_224"),
        "ResNet10x2": "models.imagenet:resnet10x2",
        "ResNet18": "models.imagenet:resnet18",
        "ResNet34": "models.imagenet:resnet34",
        "ResNet50": "models.imagenet:resnet50",
        "ResNet18x2": "models.imagenet:resnet18x2",
        "ResNet34x2": "models.imagenet:resnet34x2",
        **_all_of("imagenet", "resnext50_32x4d", "wrn_50_2"),
        "MobileNetV1": "models.mobilenetv1:mobilenet_v1",
        "MobileNetV2_Imagenet": "models.imagenet:mobilenet_v2",
        "ShuffleV2_Imagenet": "models.imagenet:shufflenet_v2",
        **_all_of("imagenet", "shufflenet_v2_x0_5", "shufflenet_v2_x2_0"),
        "vgg11_imagenet": "models.imagenet:vgg11",
        "vgg13_imagenet": "models.imagenet:vgg13",
        **_all_of("bninception", "bninception"),
        **_all_of("trn", "trn_bninception", "trn_bninception_256"),
        **_all_of("sensor", "resnet18_gaf", "sensor_cnn", "sensor_transformer"),
        "mobilenetV2": "models.mobilenetv2:mobilenetv2_hsakd",
        "mobilenetV2_dpcd": "models.mobilenetv2:mobilenetv2_dpcd",
        **{f"{name}_aux{end}": f"models.auxiliary:{name}_aux{end}" for end in ("", "_dpcd") for name in AUXILIARY},
        **_all_of("temporal", "tsm_resnet50", "tsm_mobilenetv2", "tsn_resnet50", "tsn_swin_base"),
    },
    aliases={k: v for k, v in AUXILIARY.items() if v and k.endswith(("_bn", "_imagenet"))} | PAIRS,
    resolvers={
        "torchvision": "models.external:torchvision_spec",
        "timm": "models.external:timm_spec",
        "hf_hub": "models._hub:hub_spec",
        "open_clip": "models._hub:open_clip_spec",
        "hf_folder": "models._hub:folder_spec",
        "trn": "models.trn:trn_spec",
        "tsn": "models.temporal:tsn_spec",
        "tsm": "models.temporal:tsm_spec",
    },
)

SMALL_IMAGE = 64  # px; up to this size a name of TWO_MEANINGS means the second network
TWO_MEANINGS = {"ResNet50": "ResNet50_cifar"}


def model_for(name: str, image_shape: Sequence[int]) -> ModelSpec:
    """The network that a name means for images [C, H, W]: `ResNet50` is ImageNet's, for small images RepDistiller's."""
    small = max(image_shape[1:], default=0) <= SMALL_IMAGE
    return model_dict[TWO_MEANINGS.get(name, name) if small else name]


def without_heads(spec: ModelSpec) -> ModelSpec | None:
    """The plain network below auxiliary heads; the network itself if it has none, None if it has no name."""
    if not spec.branches:
        return spec
    base = AUXILIARY.get(spec.name.removesuffix("_dpcd").removesuffix("_aux"))
    if base is None:
        return None
    other = f"{base}_dpcd"
    return model_dict[other if spec.name.endswith("_dpcd") and other in model_dict else base]


def model_in(name: str, state: Mapping[str, Any]) -> ModelSpec:
    """The network that a name means for these weights: of two networks, the one whose classifier `state` holds.

    If `state` holds auxiliary heads, a plain name means the network with heads. Their number of outputs tells which:
    HSAKD's have four per class, DPCD's one.
    """
    spec = model_dict[name]
    other = model_dict[TWO_MEANINGS.get(name, name)]
    spec = other if f"{other.head}.weight" in state and f"{spec.head}.weight" not in state else spec
    head = state.get("auxiliary_classifier.fc1.weight")
    if head is None:
        return spec
    plain = spec.name.removesuffix("_dpcd").removesuffix("_aux")
    known = plain if plain in AUXILIARY and spec.branches else {v: k for k, v in AUXILIARY.items()}.get(plain)
    if known is None:
        return spec
    found = model_dict[f"{known}_aux"]
    classes = state.get(f"{found.head}.weight")
    return found if classes is None or len(head) != len(classes) else model_dict[f"{known}_aux_dpcd"]


def __getattr__(name: str) -> Any:
    """load_student() is the public name of a function in helper/deploy/student.py, a higher layer. It is imported on
    first use, so that this package does not depend on it."""
    if name == "load_student":
        return importlib.import_module("helper.deploy.student").load_student
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
