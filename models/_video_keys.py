"""Key maps of published video checkpoints: OpenMMLab's recognisers, temporal-shift-module, torchvision and timm.

Every layout is first mapped to the names of torchvision's network (the canonical ones, with `classifier.*` for the
classifier), then to those of models.temporal, in which a shifted layer has the prefix `net`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor

V = TypeVar("V")
Rules = Sequence[tuple[str, str]]  # regular expression -> replacement, each applied to every key

# registry name of a backbone -> the layout of its keys
FAMILY_OF = {
    **{
        f"{p}:{n}": "resnet" for p in ("torchvision", "timm") for n in ("resnet18", "resnet34", "resnet50", "resnet101")
    },
    **dict.fromkeys(("ResNet18", "ResNet34", "ResNet50", "torchvision:resnet152", "timm:resnet152"), "resnet"),
    **dict.fromkeys(("MobileNetV2_Imagenet", "torchvision:mobilenet_v2"), "mobilenet_v2"),
    **dict.fromkeys(("torchvision:swin_t", "torchvision:swin_s", "torchvision:swin_b"), "swin"),
}

MM_RESNET: Rules = (
    (r"^conv1\.conv\.", "conv1."),
    (r"^conv1\.bn\.", "bn1."),
    (r"\.conv(\d)\.conv\.", r".conv\1."),
    (r"\.conv(\d)\.bn\.", r".bn\1."),
    (r"\.downsample\.conv\.", ".downsample.0."),
    (r"\.downsample\.bn\.", ".downsample.1."),
)

FIRST_FEATURE = {1: 1, 2: 2, 3: 4, 4: 7, 5: 11, 6: 14, 7: 17}  # OpenMMLab's layer -> torchvision's first feature of it
MIT_PARTS = {0: "0.0", 1: "0.1", 3: "1.0", 4: "1.1", 6: "2", 7: "3"}  # eight modules in a row -> torchvision's nesting
MIT_FIRST_PARTS = {0: "0.0", 1: "0.1", 3: "1", 4: "2"}  # of the block without an expansion


def _mm_mobilenet(key: str) -> str:
    if match := re.match(r"conv([12])\.(conv|bn)\.(.*)", key):
        return f"features.{0 if match[1] == '1' else 18}.{0 if match[2] == 'conv' else 1}.{match[3]}"
    if match := re.match(r"layer(\d)\.(\d)\.conv\.(\d)\.(?:net\.)?(conv|bn)\.(.*)", key):
        layer, block, part, kind = int(match[1]), int(match[2]), int(match[3]), 0 if match[4] == "conv" else 1
        last = part == (1 if layer == 1 else 2)
        place = f"{part + kind}" if last else f"{part}.{kind}"
        return f"features.{FIRST_FEATURE[layer] + block}.conv.{place}.{match[5]}"
    return key


def _timm_mobilenet(key: str) -> str:
    ends = {"conv_stem.": "0.0", "bn1.": "0.1", "conv_head.": "18.0", "bn2.": "18.1"}
    for old, new in ends.items():
        if key.startswith(old):
            return f"features.{new}.{key.removeprefix(old)}"
    if match := re.match(r"blocks\.(\d)\.(\d)\.(\w+)\.(.*)", key):
        stage, block, name = int(match[1]), int(match[2]), match[3]
        expanded = {"conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1", "conv_pwl": "2", "bn3": "3"}
        plain = {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "1", "bn2": "2"}
        place = (plain if stage == 0 else expanded)[name]
        return f"features.{FIRST_FEATURE[stage + 1] + block}.conv.{place}.{match[4]}"
    return key


def _mit_mobilenet(key: str) -> str:
    if match := re.match(r"features\.(\d+)\.conv\.(\d)\.(.*)", key):
        parts = MIT_FIRST_PARTS if match[1] == "1" else MIT_PARTS
        return f"features.{match[1]}.conv.{parts[int(match[2])]}.{match[3]}"
    return key


def _timm_swin(key: str, merges_at_end: bool) -> str:
    key = key.replace(".mlp.fc1.", ".mlp.0.").replace(".mlp.fc2.", ".mlp.3.")
    if key.startswith("patch_embed."):
        return key.replace("patch_embed.proj.", "features.0.0.").replace("patch_embed.norm.", "features.0.2.")
    if match := re.match(r"layers\.(\d)\.(blocks\.|downsample\.)(.*)", key):
        stage = int(match[1])
        if match[2] == "blocks.":
            return f"features.{2 * stage + 1}.{match[3]}"
        return f"features.{2 * (stage + merges_at_end)}.{match[3]}"
    return key


def _subbed(rules: Rules) -> Callable[[str], str]:
    def apply(key: str) -> str:
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        return key

    return apply


def canonical(family: str, keys: Sequence[str]) -> dict[str, str]:
    """Key of a file -> canonical key, for any layout above. Entries that no network needs are left out."""
    keys = [k for k in keys if not k.endswith(("relative_position_index", "attn_mask"))]
    openmmlab = any(k.startswith("cls_head.") or k.startswith("backbone.") for k in keys)
    bare = {k: k.removeprefix("backbone.").removeprefix("base_model.").replace(".net.", ".") for k in keys}
    translate: Callable[[str], str] = str
    if family == "resnet" and openmmlab:
        translate = _subbed(MM_RESNET)
    elif family == "mobilenet_v2":
        if openmmlab or any(k.startswith("layer1.0.conv.") for k in bare.values()):
            translate = _mm_mobilenet
        elif any(k.startswith("blocks.") for k in bare.values()):
            translate = _timm_mobilenet
        elif "features.2.conv.6.weight" in bare.values():
            translate = _mit_mobilenet
    elif family == "swin" and any(k.startswith("layers.") for k in bare.values()):
        at_end = any(k.startswith("layers.0.downsample.") for k in bare.values())
        translate = lambda key: _timm_swin(key, at_end)  # noqa: E731
    return {k: _classifier(translate(b)) for k, b in bare.items()}


def _classifier(key: str) -> str:
    """The last linear layer, by any name."""
    match = re.match(r"(?:cls_head\.fc_cls|new_fc|fc|head\.fc|head|classifier\.1|classifier)\.(weight|bias)$", key)
    return f"classifier.{match[1]}" if match else key


def adapted(family: str, own_keys: Callable[[], Sequence[str]], state: Mapping[str, V]) -> dict[str, V]:
    """Weights of any layout under the names of models.temporal; of a distillation checkpoint only the student's.

    Unknown keys are kept, so that a strict load names them.
    """
    state = dict(state)
    if any(k.startswith("architecture.") for k in state):
        state = {k.removeprefix("architecture."): v for k, v in state.items() if k.startswith("architecture.")}
    names = canonical(family, list(state))
    own = {_own_canonical(k): k for k in own_keys()}
    return {own.get(names[k], k): v for k, v in state.items() if k in names}


def _own_canonical(key: str) -> str:
    return _classifier(key.removeprefix("base_model.").replace(".net.", "."))


def to_openmmlab(family: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under models.temporal's names -> those of an OpenMMLab recogniser: `backbone.*`, `cls_head.fc_cls.*`."""
    out = {}
    for key, value in state.items():
        name, is_shifted = _own_canonical(key), ".net." in key
        if name.startswith("classifier."):
            out[f"cls_head.fc_cls.{name.removeprefix('classifier.')}"] = value
            continue
        if family == "resnet":
            name = re.sub(r"(^|\.)bn(\d)\.", r"\1conv\2.bn.", name)
            name = re.sub(r"(^|\.)conv(\d)\.(?!bn\.)", r"\1conv\2.conv." + ("net." if is_shifted else ""), name)
            name = name.replace(".downsample.0.", ".downsample.conv.").replace(".downsample.1.", ".downsample.bn.")
        elif family == "mobilenet_v2":
            name = _to_mm_mobilenet(name, is_shifted)
        elif family == "swin":
            name = _to_timm_swin(name)
        out[f"backbone.{name}"] = value
    return out


def _to_mm_mobilenet(name: str, is_shifted: bool) -> str:
    if match := re.match(r"features\.(0|18)\.(\d)\.(.*)", name):
        return f"conv{1 if match[1] == '0' else 2}.{'bn' if match[2] == '1' else 'conv'}.{match[3]}"
    match = re.match(r"features\.(\d+)\.conv\.(.*)\.(\w+)$", name)
    assert match, name
    feature, place = int(match[1]), match[2]
    layer = max(k for k, first in FIRST_FEATURE.items() if first <= feature)
    places = {"0.0": "0.conv", "0.1": "0.bn", "1.0": "1.conv", "1.1": "1.bn", "2": "2.conv", "3": "2.bn"}
    first = {"0.0": "0.conv", "0.1": "0.bn", "1": "1.conv", "2": "1.bn"}
    part = (first if layer == 1 else places)[place]
    if is_shifted:
        part = part.replace("0.", "0.net.", 1)
    return f"layer{layer}.{feature - FIRST_FEATURE[layer]}.conv.{part}.{match[3]}"


def _to_timm_swin(name: str) -> str:
    name = name.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")
    name = re.sub(r"^features\.0\.0\.", "patch_embed.proj.", name)
    name = re.sub(r"^features\.0\.2\.", "patch_embed.norm.", name)
    if match := re.match(r"features\.(\d)\.(.*)", name):
        number = int(match[1])
        inside = "blocks." if number % 2 else "downsample."
        return f"layers.{number // 2}.{inside}{match[2]}"
    return name
