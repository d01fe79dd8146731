"""Networks by public name: `model_dict["resnet8x4"](num_classes=100)` builds one (helper.protocols.ModelSpec)."""

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
    },
)
