"""Any network: `model_dict["torchvision:NAME"]` and `model_dict["timm:NAME"]`.

The taps are found by one dry run without data or weights, which shows the size of the map that each module returns.
stage1, stage2, ... are the last maps of strides 4, 8, ...; `stem` is the last map of a smaller stride, or else the
first map. Of several modules the outermost is taken, or the one that timm's feature_info names. A network with fewer
than three such maps (a ViT; a Swin, whose maps have their channels last) has no stages; `tokens` is then the output of
its last layer. `pooled` is the input of the classifier. The normalisation is that of the published weights.

A ViT or Swin has more taps (DeiT and other relatives included, and hybrids, whose stages are those of their
convolutional stem): `patches` are the patch tokens after the final norm, `qkv` the queries, keys and values of the last
block, over all tokens; a ViT with a class token also has `class_token`. `class_logits` and `distilled_logits` are the
outputs of the two classifiers of a DeiT with a distillation token. For images of other sizes a ViT interpolates its
position embedding; its weights do not change.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from core.packages import needed
from core.protocols import ModelSpec, Published, Tap, UserError, first_line
from models._common import IMAGENET_MEAN, IMAGENET_STD, without_inplace
from models._transformer import (
    read_class_token,
    read_grid,
    read_normed_qkv,
    read_patches,
    read_qkv,
    read_qkv_of_mha,
    read_qkv_of_window,
)

BATCH, CLASSES = 2, 1000  # of the dry run
MIN_STAGES = 3


@cache
def torchvision_spec(name: str) -> ModelSpec:
    """One of torchvision's classification networks."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise _unknown("torchvision", name, known)
    transforms = models.get_model_weights(name).DEFAULT.transforms()
    shape = (3, *2 * (transforms.crop_size[0],))
    spec = _spec(f"torchvision:{name}", partial(_torchvision, name), shape, transforms.mean, transforms.std)
    return dataclasses.replace(spec, published=Published(adapt=without_auxiliary)) if name in AUXILIARY else spec


# networks with auxiliary heads for training only -> the modules of these heads
AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}


def without_auxiliary(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if not k.startswith(tuple(chain.from_iterable(AUXILIARY.values())))}


def input_options(name: str, meta: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Input normalisation of a network of AUXILIARY: recorded by its run, or torchvision's if the state has
    torchvision's layout, with auxiliary heads. {} for all other networks."""
    if name.removeprefix("torchvision:") not in AUXILIARY or not name.startswith("torchvision:"):
        return {}
    return {"transform_input": bool(meta.get("transform_input", len(without_auxiliary(state)) < len(state)))}


@cache
def timm_spec(name: str) -> ModelSpec:
    """One of timm's networks; a tag (resnet18.a1_in1k) chooses the weights of `pretrained`."""
    timm = needed("timm", f"timm:{name}")
    architecture, _, tag = name.partition(".")
    known = timm.list_models() if not tag else timm.list_pretrained(f"{architecture}.*") or timm.list_models()
    if name not in known:
        raise _unknown("timm", name, known)
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    build = partial(timm_build, name)
    mean, std = (cfg.mean, cfg.std) if cfg else (IMAGENET_MEAN, IMAGENET_STD)
    spec = _spec(f"timm:{name}", build, cfg.input_size if cfg else (3, 224, 224), mean, std)
    if cfg is None:
        return spec
    classes = _timm_classes(name, cfg.num_classes)
    return dataclasses.replace(spec, published=Published(classes, interpolation=cfg.interpolation))


def _timm_classes(name: str, outputs: int) -> int:
    """Number of classes of a network's published weights. timm counts the projection of an image-text model as classes,
    although its outputs are not classes."""
    projection = ("clip" in name or "pe_core" in name) and outputs < 2048 and outputs != CLASSES
    return 0 if projection else outputs


def published_evaluation(name: str) -> tuple[int, str]:
    """(side of the images, interpolation) with which the publisher evaluates the weights of a registry name."""
    package, _, network = name.partition(":")
    if package == "torchvision":
        from torchvision import models

        weights = models.get_model_weights(network)
        transforms = getattr(weights, "IMAGENET1K_V1", weights.DEFAULT).transforms()
        return transforms.crop_size[0], transforms.interpolation.value
    import timm

    cfg = timm.get_pretrained_cfg(network, allow_unregistered=True)
    return (cfg.test_input_size or cfg.input_size)[-1], cfg.interpolation


def _unknown(package: str, name: str, known: Sequence[str]) -> UserError:
    near = difflib.get_close_matches(name, known, n=3)
    hint = (
        f"did you mean {' or '.join(f'{package}:{n}' for n in near)}?"
        if near
        else f"it has {', '.join(known[:8])}, ..."
    )
    return UserError(f"{package} has no network '{name}': {hint}")


def _torchvision(name: str, num_classes: int = CLASSES, pretrained: bool | str = False, **options: Any) -> nn.Module:
    from torchvision import models

    if name in AUXILIARY:  # their auxiliary heads would make the output a tuple in training
        options = {"aux_logits": False, "init_weights": True, "transform_input": bool(pretrained), **options}
    model = without_inplace(models.get_model(name, weights=None, num_classes=num_classes, **options))
    if isinstance(model, models.VisionTransformer):
        from models._torchvision import any_size

        model = any_size(model)
    if pretrained:
        load_published(model, name, pretrained, torchvision_spec(name).head)
    return model


def timm_build(name: str, num_classes: int = CLASSES, pretrained: bool = False, **options: Any) -> nn.Module:
    timm = needed("timm", name)
    if isinstance(pretrained, str):
        raise UserError(
            f"timm has no weights '{pretrained}' of {name}: its networks are named after their weights, such as "
            "timm:resnet50.a1_in1k; use that name and --pretrained imagenet"
        )
    if timm.models.is_model_in_modules(name, ("vision_transformer", "vision_transformer_hybrid", "deit", "eva")):
        options = {"dynamic_img_size": True, **options}
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **options)
    except (OSError, RuntimeError) as error:  # no network, no such file; none are published
        if not pretrained:
            raise
        raise UserError(f"no pretrained weights for timm:{name}: {first_line(error)}") from error
    return without_inplace(model)


def load_published(model: nn.Module, name: str, which: bool | str, head: str) -> None:
    """Fill `model` with torchvision's weights for `name`; the classifier stays untrained if it has other classes.

    which: the name of the weights; True: IMAGENET1K_V1, which published tables use, or the only weights there are.
    """
    from torchvision import models

    weights = models.get_model_weights(name)
    names = [w.name for w in weights]
    wanted = which if isinstance(which, str) else "IMAGENET1K_V1" if "IMAGENET1K_V1" in names else weights.DEFAULT.name
    if wanted not in names:
        raise UserError(f"torchvision has no weights '{wanted}' for {name}; it has {', '.join(names)}")
    try:
        state = weights[wanted].get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise UserError(f"cannot download the weights of {name} ({weights[wanted].url}): {error}") from error
    if not any(k.startswith(f"{head}.") for k in state):
        raise UserError(f"the weights {wanted} of {name} hold no classifier ({head}), which would stay random")
    own = model.state_dict()
    fits = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    left = {k for k in own if k not in fits and not k.startswith(f"{head}.")}
    if left:
        raise UserError(f"the weights {wanted} of {name} do not fit the network: {', '.join(sorted(left)[:3])} differ")
    model.load_state_dict(fits, strict=False)


@dataclass(frozen=True)
class Call:
    """The only call of a submodule; its output was not modified in place afterwards."""

    name: str
    output: Tensor

    @property
    def depth(self) -> int:
        return self.name.count(".")


def found_spec(model: nn.Module, images: Tensor, taps: Mapping[str, str]) -> ModelSpec:
    """The taps of any image classifier, found by one run on `images` [n, C, H, W] in eval mode.

    taps: name -> module path, for taps that are not found or should be other modules; `head` names the classifier.
    A UserError lists the modules and the shapes of their outputs.
    """
    name, was_training = type(model).__name__, model.training
    logits, calls = _calls(model.eval(), images)
    model.train(was_training)
    if not isinstance(logits, Tensor):
        raise UserError(f"{name} returns a {type(logits).__name__}: wrap it in a module that returns logits [B, K]")
    shapes = {call.name: tuple(call.output.shape[1:]) for call in calls}
    unknown = [path for path in taps.values() if path not in shapes]
    if unknown:
        exists = unknown[0] in dict(model.named_modules())
        why = "does not run exactly once, or its output is overwritten in place" if exists else "does not exist"
        raise UserError(f"module '{unknown[0]}' of {name} {why}; it has {listed(shapes)}")
    if "head" in taps and logits.shape[-1] not in shapes[taps["head"]]:
        raise UserError(
            f"module '{taps['head']}' of {name} is not its classifier: it has no {logits.shape[-1]} outputs, one per "
            f"class; it has {listed(shapes)}"
        )
    head = taps.get("head") or _head_of(model, calls, logits.shape[-1])
    if head is None:
        raise UserError(
            f"{name} has no linear layer with {logits.shape[-1]} outputs, one per class: name its classifier with "
            f"taps={{'head': PATH}}; it has {listed(shapes)}"
        )
    spec = _spec_of(model, calls, head, tuple(images.shape[1:]))
    if not spec.stages and not spec.patch and "tokens" not in spec.taps:
        spec = dataclasses.replace(spec, taps=_sizes(calls) | dict(spec.taps))
    chosen = {k: Tap(path) for k, path in taps.items() if k != "head"}
    numbers = sorted(int(k[5:]) for k in {**spec.taps, **chosen} if re.fullmatch(r"stage\d+", k))  # no stage1_preact
    stages = [f"stage{number}" for number in numbers]
    feats = ("stem", *stages, "pooled")
    return dataclasses.replace(
        spec, name=name, build=partial(copy.deepcopy, model), taps={**spec.taps, **chosen}, feats=feats
    )


def _sizes(calls: Sequence[Call]) -> dict[str, Tap]:
    """stage1, stage2, ... -> the outermost last map of each size, of a network made for small images."""
    last: dict[int, Call] = {}
    for call in calls:
        if call.output.ndim == 4 and call.output.shape[2] == call.output.shape[3] > 1:
            size, before = call.output.shape[3], last.get(call.output.shape[3])
            if before is None or call.depth <= before.depth:
                last[size] = call
    return {f"stage{i}": Tap(last[size].name) for i, size in enumerate(sorted(last, reverse=True), 1)}


def listed(shapes: Mapping[str, Sequence[int]], most: int = 40) -> str:
    """Modules and the shapes of their outputs, the outermost first."""
    names = sorted(shapes, key=lambda n: n.count("."))[:most]
    return ", ".join(f"{n} [{', '.join(map(str, shapes[n]))}]" for n in names) + ", ..." * (len(shapes) > most)


def _spec(
    name: str, build: Callable[..., nn.Module], shape: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> ModelSpec:
    model, calls = _dry_run(build, shape)
    head = _head_of(model, calls, CLASSES)
    if head is None:
        raise UserError(f"{name} has no classifier that could be found: no linear layer has one output per class")
    spec = _spec_of(model, calls, head, tuple(shape))
    return dataclasses.replace(spec, name=name, build=build, mean=tuple(mean), std=tuple(std))


def _head_of(model: nn.Module, calls: Sequence[Call], classes: int) -> str | None:
    return next((c.name for c in reversed(calls) if _is_classifier(model.get_submodule(c.name), classes)), None)


def _spec_of(model: nn.Module, calls: Sequence[Call], head: str, shape: tuple[int, ...]) -> ModelSpec:
    """A spec without a name."""
    maps = _stages(calls, shape[-1], [f["module"] for f in getattr(model, "feature_info", None) or ()])
    taps = {k: Tap(module) for k, module in maps.items()}
    batch = len(calls[-1].output)
    tokens = [c.name for c in calls if c.depth == 0 and c.output.ndim == 3 and len(c.output) == batch]
    attention, patch = _attention(model, calls)
    if tokens and (attention or not maps):  # a hybrid has both
        taps["tokens"] = Tap(tokens[-1], kind="tokens")
    taps |= attention
    if {"head", "head_dist"} <= {c.name for c in calls}:  # a DeiT with a distillation token
        taps |= {"class_logits": Tap("head", "logits"), "distilled_logits": Tap("head_dist", "logits")}
    is_linear = isinstance(model.get_submodule(head), nn.Linear)
    taps["pooled"] = Tap(head, kind="vector" if is_linear else "map", side="input")
    outer = tuple(c.name for c in calls if c.depth == 0)
    is_resnet = type(model).__name__ == "ResNet" and {"layer1", "layer4", head} <= set(outer)  # of torchvision, timm
    chain = outer if is_resnet else ()
    return ModelSpec("", lambda **_: model, taps, (*maps, "pooled"), head, input_shape=shape, patch=patch, chain=chain)


def _attention(model: Any, calls: Sequence[Call]) -> tuple[dict[str, Tap], int | None]:
    """Taps of a transformer whose last attention covers all tokens, and the side of its patches if it has a position
    embedding; ({}, None) for any other network."""
    outputs = {c.name: c.output for c in calls}
    own = _torchvision_attention(model, outputs) or _timm_attention(model, outputs)
    if own is None:
        return {}, None
    qkv, norm, prefix, has_class_token, patch = own
    if norm not in outputs:
        return {}, None
    grid = outputs[norm].ndim == 4  # a Swin's, [B, g, g, D]
    taps = {"patches": Tap(norm, "tokens", read=read_grid if grid else partial(read_patches, prefix)), "qkv": qkv}
    if has_class_token:
        taps["class_token"] = Tap(norm, "vector", read=read_class_token)
    return taps, patch


Attention = tuple[Tap, str, int, bool, int | None]  # qkv, final norm, tokens before the patches, class token?, patch


def _torchvision_attention(model: Any, outputs: Mapping[str, Tensor]) -> Attention | None:
    from torchvision import models
    from torchvision.models.swin_transformer import ShiftedWindowAttention

    if isinstance(model, models.VisionTransformer):
        block = list(dict(model.encoder.layers.named_children()))[-1]
        tap = Tap(f"encoder.layers.{block}.self_attention", "attention", "input", read_qkv_of_mha)
        return tap, "encoder.ln", 1, True, model.patch_size
    last = [(n, m) for n, m in model.named_modules() if isinstance(m, ShiftedWindowAttention)][-1:]
    if last and type(last[0][1]) is ShiftedWindowAttention and last[0][0] in outputs:
        name, module = last[0]
        if outputs[name].shape[1:3] == tuple(module.window_size):  # otherwise it covers parts of the map
            return Tap(name, "attention", "input", read_qkv_of_window), "norm", 0, False, None
    return None


def _timm_attention(model: Any, outputs: Mapping[str, Tensor]) -> Attention | None:
    try:
        from timm.layers import Attention as GlobalAttention
        from timm.models.swin_transformer import SwinTransformer, WindowAttention
        from timm.models.vision_transformer import VisionTransformer
    except ImportError:
        return None
    kinds = {VisionTransformer: GlobalAttention, SwinTransformer: WindowAttention}
    kind = next((attention for network, attention in kinds.items() if isinstance(model, network)), None)
    last = [(n, m) for n, m in model.named_modules() if kind is not None and type(m) is kind][-1:]
    if not last:
        return None
    name, module = last[0]
    if f"{name}.qkv" not in outputs or len(outputs[f"{name}.qkv"]) != len(outputs["norm"]):  # over windows
        return None
    tap = Tap(f"{name}.qkv", "attention", read=partial(read_qkv, module.num_heads))
    if kind is WindowAttention:
        return tap, "norm", 0, False, None
    if not isinstance(module.q_norm, nn.Identity):
        tap = Tap(name, "attention", "input", read_normed_qkv)
    return tap, "norm", model.num_prefix_tokens, model.cls_token is not None, model.patch_embed.feat_ratio()


def _is_classifier(module: nn.Module, classes: int) -> bool:
    """A linear layer with one output per class, or the 1x1 convolution that replaces it in a SqueezeNet."""
    outputs = getattr(module, "out_features", getattr(module, "out_channels", None))
    return isinstance(module, nn.Linear | nn.Conv2d) and outputs == classes


def _stages(calls: Sequence[Call], size: int, preferred: Sequence[str]) -> dict[str, str]:
    """stem, stage1, ... -> module; {} for networks whose features are not maps."""
    by_stride: dict[int, list[Call]] = {}
    batch = len(calls[-1].output)
    for call in calls:
        if call.output.ndim == 4 and len(call.output) == batch and call.output.shape[2] == call.output.shape[3] > 1:
            by_stride.setdefault(round(math.log2(size / call.output.shape[3])), []).append(call)

    def last(found: Sequence[Call]) -> str:
        named = [c.name for c in found if c.name in preferred]
        outer = min(c.depth for c in found)  # a block rather than a module inside it
        return (named or [c.name for c in found if c.depth == outer])[-1]

    stages = [last(by_stride[s]) for s in sorted(by_stride) if s >= 2]
    if len(stages) < MIN_STAGES:
        return {}
    early = [s for s in by_stride if s < 2]
    first = by_stride[min(by_stride)]
    outer = min(c.depth for c in first)
    stem = last(by_stride[max(early)]) if early else next(c.name for c in first if c.depth == outer)
    return {"stem": stem, **{f"stage{i}": module for i, module in enumerate(stages, 1)}}


def _dry_run(build: Callable[..., nn.Module], shape: Sequence[int]) -> tuple[nn.Module, list[Call]]:
    """The network and the calls of modules that run once and whose output is not modified, in order of completion.

    On the meta device, which computes nothing; networks that need real numbers run on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return _run(build, shape)
        except (NotImplementedError, RuntimeError):
            return _run(build, shape)


def _run(build: Callable[..., nn.Module], shape: Sequence[int]) -> tuple[nn.Module, list[Call]]:
    model = build(num_classes=CLASSES).eval()
    return model, _calls(model, torch.zeros(BATCH, *shape))[1]


@torch.no_grad()
def _calls(model: nn.Module, images: Tensor) -> tuple[Tensor, list[Call]]:
    """The network's output, and the calls of its modules."""
    seen: list[tuple[str, Tensor, int]] = []

    def keep(name: str, module: nn.Module, args: tuple, output: Any) -> None:
        if isinstance(output, Tensor):
            seen.append((name, output, output._version))

    hooks = [m.register_forward_hook(partial(keep, name)) for name, m in model.named_modules() if name]
    try:
        logits = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    times: Mapping[str, int] = Counter(name for name, *_ in seen)
    return logits, [Call(name, x) for name, x, version in seen if times[name] == 1 and x._version == version]
