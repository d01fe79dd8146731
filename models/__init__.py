"""Networks by public name: `model_dict["resnet8x4"](num_classes=100)` builds one (helper.protocols.ModelSpec)."""

from collections.abc import Collection, Sequence

from helper.protocols import ModelSpec
from helper.registry import Registry

model_dict = Registry(
    "model",
    {
        "resnet8": "models.resnet:resnet8",
        "resnet14": "models.resnet:resnet14",
        "resnet20": "models.resnet:resnet20",
        "resnet32": "models.resnet:resnet32",
        "resnet38": "models.resnet:resnet38",
        "resnet44": "models.resnet:resnet44",
        "resnet56": "models.resnet:resnet56",
        "resnet110": "models.resnet:resnet110",
        "resnet116": "models.resnet:resnet116",
        "resnet14x2": "models.resnet:resnet14x2",
        "resnet38x2": "models.resnet:resnet38x2",
        "resnet110x2": "models.resnet:resnet110x2",
        "resnet8x4": "models.resnet:resnet8x4",
        "resnet14x4": "models.resnet:resnet14x4",
        "resnet32x4": "models.resnet:resnet32x4",
        "resnet38x4": "models.resnet:resnet38x4",
        "resnet8x4_double": "models.resnet:resnet8x4_double",
        "wrn_16_1": "models.wrn:wrn_16_1",
        "wrn_16_2": "models.wrn:wrn_16_2",
        "wrn_40_1": "models.wrn:wrn_40_1",
        "wrn_40_2": "models.wrn:wrn_40_2",
        "vgg8": "models.vgg:vgg8",
        "vgg11": "models.vgg:vgg11",
        "vgg13": "models.vgg:vgg13",
        "vgg16": "models.vgg:vgg16",
        "vgg19": "models.vgg:vgg19",
        "MobileNetV2": "models.mobilenetv2:mobilenetv2_0_5",
        "MobileNetV2_1_0": "models.mobilenetv2:mobilenetv2_1_0",
        "ShuffleV1": "models.shufflenetv1:shuffle_v1",
        "ShuffleV2": "models.shufflenetv2:shuffle_v2",
        "ShuffleV2_1_5": "models.shufflenetv2:shuffle_v2_1_5",
        "ResNet50_cifar": "models.resnet_bottleneck:resnet50_cifar",
        "ResNet10x2": "models.imagenet:resnet10x2",
        "ResNet18": "models.imagenet:resnet18",
        "ResNet34": "models.imagenet:resnet34",
        "ResNet50": "models.imagenet:resnet50",
        "ResNet18x2": "models.imagenet:resnet18x2",
        "ResNet34x2": "models.imagenet:resnet34x2",
        "resnext50_32x4d": "models.imagenet:resnext50_32x4d",
        "wrn_50_2": "models.imagenet:wrn_50_2",
        "MobileNetV1": "models.mobilenetv1:mobilenet_v1",
        "MobileNetV2_Imagenet": "models.imagenet:mobilenet_v2",
        "ShuffleV2_Imagenet": "models.imagenet:shufflenet_v2",
        "shufflenet_v2_x0_5": "models.imagenet:shufflenet_v2_x0_5",
        "shufflenet_v2_x2_0": "models.imagenet:shufflenet_v2_x2_0",
        "vgg11_imagenet": "models.imagenet:vgg11",
        "vgg13_imagenet": "models.imagenet:vgg13",
        "bninception": "models.bninception:bninception",
        "trn_bninception": "models.trn:trn_bninception",
        "trn_bninception_256": "models.trn:trn_bninception_256",
        "resnet18_gaf": "models.sensor:resnet18_gaf",
        "sensor_cnn": "models.sensor:sensor_cnn",
        "sensor_transformer": "models.sensor:sensor_transformer",
        "tsm_resnet50": "models.temporal:tsm_resnet50",
        "tsm_mobilenetv2": "models.temporal:tsm_mobilenetv2",
        "tsn_resnet50": "models.temporal:tsn_resnet50",
        "tsn_swin_base": "models.temporal:tsn_swin_base",
    },
    resolvers={
        "torchvision": "models.external:torchvision_spec",
        "timm": "models.external:timm_spec",
        "trn": "models.trn:trn_spec",
        "tsn": "models.temporal:tsn_spec",
        "tsm": "models.temporal:tsm_spec",
    },
)

SMALL_IMAGE = 64  # px; up to this size a name of TWO_MEANINGS means the second network
TWO_MEANINGS = {"ResNet50": "ResNet50_cifar"}


def model_for(name: str, image_shape: Sequence[int]) -> ModelSpec:
    """The network a name means for images [C, H, W]: `ResNet50` is ImageNet's, and RepDistiller's on small images."""
    small = max(image_shape[1:], default=0) <= SMALL_IMAGE
    return model_dict[TWO_MEANINGS.get(name, name) if small else name]


def model_in(name: str, keys: Collection[str]) -> ModelSpec:
    """The network a name means for weights: of two meanings, the one whose classifier `keys` hold."""
    spec = model_dict[name]
    other = model_dict[TWO_MEANINGS.get(name, name)]
    return other if f"{other.head}.weight" in keys and f"{spec.head}.weight" not in keys else spec
