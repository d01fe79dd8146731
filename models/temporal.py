"""Segment networks over any 2-D network: TSN (Wang et al., ECCV 2016, eq. 1), TSM (Lin et al., ICCV 2019, section 4).

Module names are those of temporal-shift-module: `base_model`, `new_fc`, and `net` inside a shifted layer. The heads are
those of the published Kinetics configurations: TSN averages the frames' features, then applies dropout and the
classifier; TSM applies dropout and the classifier to every frame, then averages. Shape letters: B clips, T frames of a
clip, D values per frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from core.protocols import ModelSpec, Published, Tap, UserError
from models import imagenet
from models._common import IMAGENET_MEAN, IMAGENET_STD, without_inplace
from models._transformer import read_channels_last
from models._video_keys import FAMILY_OF, adapted

SHORTCUTS = ("downsample", "shortcut", "convShortcut")  # its name in ResNets, CIFAR bottlenecks and Wide ResNets
NUM_SEGMENTS = 8
SHIFT_DIV = 8
DEEP = 23  # with this many blocks in the third stage or more, every second block is shifted (ResNet-101, ResNet-152)


def shifted(x: Tensor, num_segments: int, fold: int, back: bool = False) -> Tensor:
    """A shifted copy of frames [B*T, C, H, W]: channels [0, fold) come from the next frame, [fold, 2 fold) from the
    previous one, zeros at the ends of a clip. back: in the other direction, which is the transpose."""
    y = x.clone()  # contiguous copies are cheap; a quarter of the channels is copied again
    _write(y, x, num_segments, fold, back)
    return y


def _write(y: Tensor, source: Tensor, num_segments: int, fold: int, back: bool = False) -> None:
    """Shift over all frames of the batch at once, then clear what came from the neighbouring clip: on a CPU
    separate dimensions for clips and frames would cost more than the copies."""
    first, second = slice(fold), slice(fold, 2 * fold)
    earlier, later = (second, first) if back else (first, second)  # frames from beyond the end, before the start
    y[:-1, earlier] = source[1:, earlier]
    y[num_segments - 1 :: num_segments, earlier] = 0
    y[1:, later] = source[:-1, later]
    y[::num_segments, later] = 0


class _Shift(torch.autograd.Function):
    """One copy forward and one backward; autograd of slice assignments would need six."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, num_segments: int, fold: int, back: bool) -> Tensor:
        ctx.settings = num_segments, fold, back
        return shifted(x, num_segments, fold, back)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        num_segments, fold, back = ctx.settings
        return _Shift.apply(gradient, num_segments, fold, not back), None, None, None


class TemporalShift(nn.Module):
    """A layer of frames [B*T, C, H, W] whose input is shifted in time: an eighth of the channels from the next frame,
    an eighth from the previous one.

    The residual branch reads the shifted frames, the shortcut the frames themselves. Without gradient the frames are
    shifted in place, a quarter of the traffic of a copy, and restored after the layer has read them.
    """

    def __init__(self, net: nn.Module, num_segments: int, shift_div: int = SHIFT_DIV):
        super().__init__()
        self.net, self.num_segments, self.shift_div = net, num_segments, shift_div

    def forward(self, x: Tensor) -> Tensor:
        fold = x.shape[1] // self.shift_div
        if fold == 0:
            return self.net(x)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.net(_Shift.apply(x, self.num_segments, fold, False))
        kept = x[:, : 2 * fold].clone()
        _write(x, kept, self.num_segments, fold)
        y = self.net(x)
        x[:, : 2 * fold] = kept
        return y


def residual_layers(backbone: nn.Module) -> Iterator[tuple[str, int]]:
    """(path of the layer to shift, number of its block in its stage): the first layer of each residual branch.

    ResNets, Wide ResNets and RegNets: `conv1` of every block. Inverted residuals (MobileNets, EfficientNets): the
    expansion, where there is one next to a shortcut. ConvNeXts: the depthwise convolution.
    """
    counts: dict[str, int] = {}
    for path, module in backbone.named_modules():
        layer = _first_of_branch(module)
        if layer is not None:
            stage = path.rpartition(".")[0]
            yield f"{path}.{layer}", counts.get(stage, 0)
            counts[stage] = counts.get(stage, 0) + 1


def _first_of_branch(module: nn.Module) -> str | None:
    children = dict(module.named_children())
    if "conv1" in children and "conv2" in children and any(hasattr(module, name) for name in SHORTCUTS):
        return "conv1"  # ResNets of torchvision, timm and CIFAR, Wide ResNets, RegNets of timm
    if "f" in children and isinstance(module.f, nn.Sequential) and "a" in dict(module.f.named_children()):
        return "f.a"  # RegNets of torchvision
    if getattr(module, "use_res_connect", False):  # inverted residuals of torchvision
        branch = "conv" if "conv" in children else "block"
        return f"{branch}.0" if len(children[branch]) > (3 if branch == "conv" else 2) else None  # type: ignore[arg-type]
    if getattr(module, "is_residual", False) and isinstance(children.get("conv"), nn.Sequential):
        return "conv.0"  # inverted residuals for CIFAR
    if getattr(module, "has_skip", False) and "conv_pw" in children and "conv_pwl" in children:
        return "conv_pw"  # of timm
    if "conv_dw" in children and "mlp" in children:
        return "conv_dw"  # ConvNeXt of timm
    if "block" in children and hasattr(module, "layer_scale"):
        return "block.0"  # of torchvision
    return None


def shift_layers(backbone: nn.Module, name: str, num_segments: int) -> list[str]:
    """Wrap what residual_layers() names; the paths. From ResNet-101 on every second block, as published."""
    layers = list(residual_layers(backbone))
    if not layers:
        raise UserError(
            f"tsm:{name}: the first layers of its residual branches are unknown (they are known for ResNets, Wide "
            f"ResNets, RegNets, ConvNeXts and networks of inverted residuals); use tsn:{name}, which averages frames"
        )
    third = getattr(backbone, "layer3", ())
    every = 2 if isinstance(third, nn.Sequential) and len(third) >= DEEP else 1
    chosen = [path for path, block in layers if block % every == 0]
    for path in chosen:
        backbone.set_submodule(path, TemporalShift(backbone.get_submodule(path), num_segments))
    return chosen


class Segments(nn.Module):
    """What TSN and TSM share: clips [B, T, 3, H, W] -> frame features [B*T, D] of a backbone without its classifier."""

    def __init__(
        self, backbone: nn.Module, width: int, num_classes: int, num_segments: int, dropout: float, std: float
    ):
        super().__init__()
        self.num_segments = num_segments
        self.base_model = without_inplace(backbone)
        self.dropout = nn.Dropout(dropout)
        self.new_fc = nn.Linear(width, num_classes)
        nn.init.normal_(self.new_fc.weight, 0, std)
        nn.init.zeros_(self.new_fc.bias)

    def frame_features(self, clips: Tensor) -> Tensor:
        return self.base_model(frames_of(clips))


def frames_of(clips: Tensor) -> Tensor:
    """[B, T, 3, H, W] -> [B*T, 3, H, W], channels_last."""
    return clips.flatten(0, 1).contiguous(memory_format=torch.channels_last)


def replace_classifier(network: nn.Module, spec: ModelSpec, by: nn.Module) -> int:
    """Put a module in the place of a network's classifier; returns D, the width of what the classifier read."""
    classifier = network.get_submodule(spec.head)
    width = next((m.in_features for m in classifier.modules() if isinstance(m, nn.Linear)), None)
    if width is None:
        raise UserError(
            f"trn, tsn and tsm replace a linear classifier, but {spec.head} of {spec.name} is not linear: choose "
            "another network"
        )
    network.set_submodule(spec.head, by)
    return width


def _without_dropout(backbone: nn.Module, head: str) -> None:
    """Remove the dropout directly before the classifier, which was part of it."""
    parent, _, place = head.rpartition(".")
    box = backbone.get_submodule(parent)
    if isinstance(box, nn.Sequential) and place.isdecimal() and place != "0":
        before = str(int(place) - 1)
        if isinstance(box.get_submodule(before), nn.Dropout):
            box.set_submodule(before, nn.Identity())


class TSN(Segments):
    """[B, T, 3, H, W] -> [B, K]: mean of the frames' features, dropout, linear layer. Any T."""

    def forward(self, clips: Tensor) -> Tensor:
        features = self.frame_features(clips).unflatten(0, clips.shape[:2])
        return self.new_fc(self.dropout(features.mean(1)))


class TSM(Segments):
    """[B, T, 3, H, W] -> [B, K]: dropout and linear layer on every frame, mean of the frames' scores."""

    def forward(self, clips: Tensor) -> Tensor:
        if clips.shape[1] != self.num_segments:
            raise UserError(
                f"this TSM shifts within {self.num_segments} frames, but a clip has {clips.shape[1]}: "
                f"use --num_segments {self.num_segments}"
            )
        scores = self.new_fc(self.dropout(self.frame_features(clips)))
        return scores.unflatten(0, clips.shape[:2]).mean(1)


def _build(
    kind: str,
    backbone: ModelSpec,
    num_classes: int = 400,
    shape: Sequence[int] | None = None,
    dropout: float | None = None,
    **options: Any,
) -> nn.Module:
    """shape: [T, C, H, W] of a clip. dropout: the published one by default. options: for the backbone."""
    num_segments = NUM_SEGMENTS if shape is None else shape[0]
    base = backbone(num_classes=num_classes, **options)
    if kind == "tsm":
        shift_layers(base, backbone.name, num_segments)
    network, usual, std = (TSM, 0.5, 0.001) if kind == "tsm" else (TSN, 0.4, 0.01)
    width = replace_classifier(base, backbone, nn.Identity())
    _without_dropout(base, backbone.head)
    return network(base, width, num_classes, num_segments, usual if dropout is None else dropout, std)


def _over(kind: str, backbone: ModelSpec, name: str) -> ModelSpec:
    """Taps hold the mean of a map over frames; attention has no such mean and is not tapped. `frame_logits` of a TSM
    are the scores of every frame [B*T, K]; a TSN scores only clips."""
    build = partial(_build, kind, backbone)
    taps = {k: tap for k, tap in frame_taps(kind, backbone).items() if k != "pooled" and tap.kind != "attention"}
    taps["pooled"] = Tap("base_model", "vector", per_frame=True)
    if kind == "tsm":
        taps["frame_logits"] = Tap("new_fc", "logits")
    adapt = partial(adapted, FAMILY_OF.get(backbone.name, "plain"), partial(_own_keys, build))
    published = Published(adapt=adapt, average_clips="prob" if kind == "tsm" else "score")
    return clip_spec(name, build, backbone, taps, "new_fc", published)


def frame_taps(kind: str, backbone: ModelSpec) -> dict[str, Tap]:
    """The taps of a 2-D network inside a network of clips, per frame. UserError if it reads no images."""
    if backbone.input != "image":
        raise UserError(
            f"{kind} needs a network of images, but {backbone.name} reads '{backbone.input}': choose another network"
        )
    return {
        k: dataclasses.replace(tap, module=f"base_model.{tap.module}", per_frame=True)
        for k, tap in backbone.taps.items()
    }


def clip_spec(
    name: str, build: Any, backbone: ModelSpec, taps: dict[str, Tap], head: str, published: Published
) -> ModelSpec:
    """A network of clips with the stages and the normalisation of a 2-D network."""
    clip = {"input": "video", "input_shape": (NUM_SEGMENTS, *backbone.input_shape), "fits": True}
    norm = {"mean": backbone.mean, "std": backbone.std}
    return ModelSpec(name, build, taps, backbone.feats, head, published=published, **clip, **norm)


def family_of(spec: ModelSpec) -> str | None:
    """The layout of a segment network's keys (models._video_keys); None if there is no key map."""
    adapt = spec.published.adapt
    family = adapt.args[0] if isinstance(adapt, partial) and adapt.func is adapted else "plain"
    return None if family == "plain" else family


def _own_keys(build: Any) -> list[str]:
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return list(build(num_classes=1).state_dict())


@cache
def _over_named(kind: str, name: str) -> ModelSpec:
    """`tsn:NAME` over any network of images, such as tsn:torchvision:resnet18; `tsm:NAME` over any network of residual
    blocks, such as tsm:timm:resnet50."""
    from models import model_dict

    return _over(kind, model_dict[name], f"{kind}:{name}")


tsn_spec, tsm_spec = partial(_over_named, "tsn"), partial(_over_named, "tsm")


def _swin_base(num_classes: int = 1000, pretrained: bool | str = False) -> nn.Module:
    """torchvision's Swin-B with the drop path of timm's (0.1), as the published teacher; any image size."""
    from torchvision.models.swin_transformer import SwinTransformer

    model = SwinTransformer(
        patch_size=[4, 4],
        embed_dim=128,
        depths=[2, 2, 18, 2],
        num_heads=[4, 8, 16, 32],
        window_size=[7, 7],
        stochastic_depth_prob=0.1,
        num_classes=num_classes,
    )
    for module in model.modules():  # computed from the window; files of timm have no such entry
        if "relative_position_index" in module._buffers:
            index = module.relative_position_index
            module.register_buffer("relative_position_index", index, persistent=False)
    if pretrained:
        from models.external import load_published

        load_published(model, "swin_b", pretrained, "head")
    return model


# torchvision's Swins: stages end before the merges, channels last; their maps are sums without an activation
SWIN_STAGES = {f"stage{i}": Tap(f"features.{2 * i - 1}", read=read_channels_last) for i in (1, 2, 3, 4)}
SWIN_TAPS = {
    "stem": Tap("features.0", read=read_channels_last),
    **SWIN_STAGES,
    **{f"{stage}_preact": tap for stage, tap in SWIN_STAGES.items()},
    "classified": Tap("norm", read=read_channels_last),
    "pooled": Tap("flatten", "vector"),
}
SWIN_BASE = ModelSpec(
    "torchvision:swin_b",
    _swin_base,
    SWIN_TAPS,
    ("stem", *SWIN_STAGES, "pooled"),
    "head",
    input_shape=(3, 224, 224),
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)
tsm_resnet50 = _over("tsm", imagenet.resnet50, "tsm_resnet50")
tsm_mobilenetv2 = _over("tsm", imagenet.mobilenet_v2, "tsm_mobilenetv2")
tsn_resnet50 = _over("tsn", imagenet.resnet50, "tsn_resnet50")
tsn_swin_base = _over("tsn", SWIN_BASE, "tsn_swin_base")
