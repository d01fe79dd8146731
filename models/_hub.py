"""Networks from files: `hf_hub:USER/NAME[@REVISION]`, a local folder of the same files, and `open_clip:NAME/WEIGHTS`.

The files are a config.json and weights, of a timm network or of transformers' ViT, DINOv2 and SigLIP, whose keys are
mapped to timm's VisionTransformer. The classifier is kept where it is a linear layer of the pooled feature.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.packages import needed
from core.protocols import ModelSpec, Published, Tap, UserError, first_line
from models._common import IMAGENET_MEAN, IMAGENET_STD, without_inplace
from models.external import CLASSES, _spec, timm_build

State = dict[str, Tensor]
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
HALF = (0.5, 0.5, 0.5)
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # as PIL numbers them


@dataclass(frozen=True)
class Files:
    """name: of the network. config: the content of config.json. weights: the file. preprocessing: the content of
    preprocessor_config.json, {} if there is none. identity: a string that identifies these weights."""

    name: str
    config: Mapping[str, Any]
    weights: Path
    preprocessing: Mapping[str, Any]
    identity: str


@cache
def hub_spec(name: str) -> ModelSpec:
    """A network of the Hub, from the local cache if it is there; the revision is recorded."""
    hub = needed("huggingface_hub", f"hf_hub:{name}")
    repo, _, revision = name.partition("@")

    def fetch(file: str) -> Path:
        return Path(hub.hf_hub_download(repo, file, revision=revision or None))

    try:
        config = fetch("config.json")
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"cannot read hf_hub:{name}: it is not in the cache {hub.constants.HF_HUB_CACHE} and downloading it failed "
            f"({first_line(error)[:120]}): check the name, or copy the cache of a machine that has it"
        ) from error
    weights = _first(fetch, f"hf_hub:{name}")
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # not every repository has one
        fetch("preprocessor_config.json")
    commit = config.parent.name
    return _spec_of_files(_files(f"hf_hub:{repo}", config.parent, weights, f"hf_hub:{repo}@{commit}"))


def _first(fetch: Any, name: str) -> Path:
    for file in WEIGHTS:
        try:
            return fetch(file)
        except (OSError, ValueError, RuntimeError) as error:
            last = error
    raise UserError(f"{name} has no weights {' or '.join(WEIGHTS)}: {first_line(last)[:120]}")


def is_folder(path: str | Path) -> bool:
    """Whether a path is a folder with a config.json, or a safetensors file in one."""
    path = Path(path)
    config = (path.parent if path.suffix == ".safetensors" else path) / "config.json"
    if not (path.exists() and config.is_file()):
        return False
    found = _read(config)
    return not _is_export(found) and bool({"model_type", "architecture"} & found.keys())


def _is_export(config: Mapping[str, Any]) -> bool:
    """Whether scripts/export_student.py wrote this config."""
    return {"architecture", "deploys", "macs"} <= config.keys()


@cache
def folder_spec(path: str) -> ModelSpec:
    """A network from a local folder, or from one weights file in it."""
    given = Path(path)
    folder = given if given.is_dir() else given.parent
    weights = given if given.is_file() else next((folder / w for w in WEIGHTS if (folder / w).is_file()), None)
    if weights is None:
        raise UserError(f"{folder} holds a config.json but no weights: put {' or '.join(WEIGHTS)} there")
    return _spec_of_files(_files(f"hf:{folder.resolve().name}", folder, weights, ""))


def _files(name: str, folder: Path, weights: Path, identity: str) -> Files:
    config = _read(folder / "config.json")
    more = folder / "preprocessor_config.json"
    with open(weights, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    settings = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]
    identity = f"{identity} {digest}+{settings}".strip()
    return Files(name, config, weights, _read(more) if more.is_file() else {}, identity)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read '{path}' ({error}): copy or export it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is not the config.json of a network: download it again")
    return found


def _state(files: Files) -> State:
    path = files.weights
    load = partial(torch.load, map_location="cpu", weights_only=True)
    if path.suffix == ".safetensors":
        load = needed("safetensors.torch", f"reading {path}").load_file
    try:
        return load(path)
    except Exception as error:  # on foreign bytes the unpickler raises almost any exception
        raise UserError(f"{path} is truncated or not a file of weights: {first_line(error)[:120]}") from error


def _spec_of_files(files: Files) -> ModelSpec:
    if _is_export(files.config):
        raise UserError(
            f"{files.name} is a network that scripts/export_student.py wrote: download it and give its {WEIGHTS[0]}"
        )
    kind = _transformers if "model_type" in files.config else _timm
    if kind is _timm and "architecture" not in files.config:
        raise UserError(f"the config.json of {files.name} names neither a timm architecture nor a model_type")
    return kind(files)


def _filled(files: Files, model: nn.Module, state: Mapping[str, Tensor], head: str) -> nn.Module:
    """The model with these weights; it keeps its own classifier if theirs has another shape or is absent."""
    own = model.state_dict()
    fits = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    left = [k for k in own if k not in fits and not k.startswith(f"{head}.")]
    stray = [k for k in state if k not in own and not k.startswith(f"{head}.")]
    if left or stray:
        raise UserError(
            f"the weights of {files.name} do not fit its config.json: {len(left)} are missing or of another shape, "
            f"{len(stray)} are unknown ({', '.join((left + stray)[:3])})"
        )
    model.load_state_dict(fits, strict=False)
    return model


def _timm(files: Files) -> ModelSpec:
    config = files.config
    architecture, cfg = str(config["architecture"]), config.get("pretrained_cfg", config)
    build = partial(timm_build, architecture, **config.get("model_args", {}))
    shape = tuple(cfg.get("input_size", (3, 224, 224)))
    mean, std = tuple(cfg.get("mean", IMAGENET_MEAN)), tuple(cfg.get("std", IMAGENET_STD))
    spec = _spec(files.name, build, shape, mean, std)
    state = _state(files)
    classifier = state.get(f"{spec.head}.weight")
    return dataclasses.replace(
        spec,
        build=partial(_built, files, build, None, spec.head),
        published=_published(classifier, files, cfg.get("interpolation", "bicubic")),
    )


def _built(
    files: Files, build: Any, convert: Any, head: str, num_classes: int = CLASSES, pretrained: bool = False, **more: Any
) -> nn.Module:
    model = build(num_classes=num_classes, **more)
    if not pretrained:
        return model
    state = _state(files)
    return _filled(files, model, state if convert is None else convert(files.config, state), head)


def _transformers(files: Files) -> ModelSpec:
    kind = str(files.config["model_type"])
    if kind not in LAYOUTS:
        raise UserError(f"{files.name} is a {kind} of transformers; only {', '.join(sorted(LAYOUTS))} can be read")
    config = {**files.config, **files.config.get("vision_config", {})}
    files = dataclasses.replace(files, config=config)
    arguments, convert, mean, std, interpolation = LAYOUTS[kind]
    missing = [k for k in ("hidden_size", "num_hidden_layers", "num_attention_heads") if k not in config]
    if missing:
        raise UserError(f"the config.json of {files.name} lacks {', '.join(missing)}")
    if config.get("use_swiglu_ffn"):
        raise UserError(f"{files.name} has gated layers (use_swiglu_ffn), which cannot be read")
    build = partial(_vision_transformer, {**_common(config), **arguments(config)})
    seen = files.preprocessing
    mean, std = tuple(seen.get("image_mean", mean)), tuple(seen.get("image_std", std))
    shape = (3, *2 * (int(config.get("image_size", 224)),))
    spec = _spec(files.name, build, shape, mean, std)
    classifier = convert(config, _state(files)).get("head.weight")
    return dataclasses.replace(
        spec,
        build=partial(_built, files, build, convert, "head"),
        published=_published(classifier, files, RESAMPLE.get(seen.get("resample", 0), interpolation)),
    )


def _published(classifier: Tensor | None, files: Files, interpolation: str) -> Published:
    classes = 0 if classifier is None else len(classifier)
    return Published(classes, weights=files.identity, interpolation=interpolation)


def _common(config: Mapping[str, Any]) -> dict[str, Any]:
    width = config["hidden_size"]
    hidden = config["mlp_ratio"] * width if "mlp_ratio" in config else config.get("intermediate_size", 4 * width)
    return {
        "img_size": config.get("image_size", 224),
        "patch_size": config.get("patch_size", 16),
        "embed_dim": width,
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp_ratio": hidden / width,
        "qkv_bias": config.get("qkv_bias", True),
    } | {"eps": config.get("layer_norm_eps", 1e-6), "act": config.get("hidden_act", "gelu")}


def _vision_transformer(arguments: Mapping[str, Any], num_classes: int = CLASSES, **more: Any) -> nn.Module:
    timm = needed("timm.models.vision_transformer", "reading a network of transformers")
    options = dict(arguments)
    norm = partial(nn.LayerNorm, eps=options.pop("eps"))
    act = partial(nn.GELU, approximate="tanh" if "tanh" in options.pop("act") else "none")
    model = timm.VisionTransformer(
        **options, num_classes=num_classes, norm_layer=norm, act_layer=act, dynamic_img_size=True, **more
    )
    return without_inplace(model)


def _stripped(state: Mapping[str, Tensor]) -> State:
    """Keys of the image encoder, as its own class writes them."""
    for prefix in ("vision_model.", "vit.", "dinov2.", "dinov2_with_registers.", "siglip.vision_model."):
        if any(k.startswith(prefix) for k in state):
            inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            return inside | {k: v for k, v in state.items() if k.startswith("classifier.")}
    return dict(state)


def _block(state: State, source: str, names: Mapping[str, str], qkv: tuple[str, str, str], target: str) -> State:
    """One layer: `names` maps its parts to timm's names; queries, keys and values are joined into one layer."""
    out: State = {}
    for theirs, ours in names.items():
        for key in [k for k in state if k.startswith(f"{source}.{theirs}.")]:
            out[f"{target}.{ours}.{key.rpartition('.')[2]}"] = state[key]
    for end in ("weight", "bias"):
        parts = [state.get(f"{source}.{part}.{end}") for part in qkv]
        if all(p is not None for p in parts):
            out[f"{target}.attn.qkv.{end}"] = torch.cat(parts)  # type: ignore[arg-type]
    return out


MLP_NAMES = {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
DINO_NAMES = {"norm1": "norm1", "attention.output.dense": "attn.proj", "norm2": "norm2", **MLP_NAMES}
SIGLIP_NAMES = {"layer_norm1": "norm1", "self_attn.out_proj": "attn.proj", "layer_norm2": "norm2", **MLP_NAMES}
VIT_NAMES = {
    "layernorm_before": "norm1",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
SPLIT = tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))


def _renamed(state: Mapping[str, Tensor], theirs: str, ours: str) -> State:
    """Weight and bias of one layer."""
    return {f"{ours}.{end}": state[f"{theirs}.{end}"] for end in ("weight", "bias")}


def _of_vit(config: Mapping[str, Any], given: Mapping[str, Tensor], names: Mapping[str, str] = VIT_NAMES) -> State:
    state = _stripped(given)
    out = {
        "cls_token": state["embeddings.cls_token"],
        "pos_embed": state["embeddings.position_embeddings"],
        **_renamed(state, "embeddings.patch_embeddings.projection", "patch_embed.proj"),
        **_renamed(state, "layernorm", "norm"),
    }
    for i in range(config["num_hidden_layers"]):
        out |= _block(state, f"encoder.layer.{i}", names, SPLIT, f"blocks.{i}")  # type: ignore[arg-type]
    if "classifier.weight" in state and names is VIT_NAMES:  # DINOv2's classifier reads more than the pooled feature
        out |= _renamed(state, "classifier", "head")
    return out


def _of_dinov2(config: Mapping[str, Any], given: Mapping[str, Tensor]) -> State:
    state, out = _stripped(given), _of_vit(config, given, DINO_NAMES)
    for i in range(config["num_hidden_layers"]):
        for n in (1, 2):
            out[f"blocks.{i}.ls{n}.gamma"] = state[f"encoder.layer.{i}.layer_scale{n}.lambda1"]
    if config.get("num_register_tokens"):  # they have no position; timm adds that of the class token to it
        out["reg_token"] = state["embeddings.register_tokens"]
        out["cls_token"] = out["cls_token"] + out["pos_embed"][:, :1]
        out["pos_embed"] = out["pos_embed"][:, 1:]
    return out


def _of_siglip(config: Mapping[str, Any], given: Mapping[str, Tensor]) -> State:
    state = _stripped(given)
    out = {
        "pos_embed": state["embeddings.position_embedding.weight"][None],
        **_renamed(state, "embeddings.patch_embedding", "patch_embed.proj"),
        **_renamed(state, "post_layernorm", "norm"),
        "attn_pool.latent": state["head.probe"],
        **_renamed(state, "head.attention.out_proj", "attn_pool.proj"),
        **_renamed(state, "head.layernorm", "attn_pool.norm"),
        **_renamed(state, "head.mlp.fc1", "attn_pool.mlp.fc1"),
        **_renamed(state, "head.mlp.fc2", "attn_pool.mlp.fc2"),
    }
    split = tuple(f"self_attn.{part}_proj" for part in "qkv")
    for i in range(config["num_hidden_layers"]):
        out |= _block(state, f"encoder.layers.{i}", SIGLIP_NAMES, split, f"blocks.{i}")  # type: ignore[arg-type]
    width = config["hidden_size"]
    for end in ("weight", "bias"):
        together = state[f"head.attention.in_proj_{end}"]
        out[f"attn_pool.q.{end}"], out[f"attn_pool.kv.{end}"] = together[:width], together[width:]
    return out


def _checked(convert: Any) -> Any:
    """The same key map, with a UserError that names a missing key."""

    def converted(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> State:
        try:
            return convert(config, state)
        except KeyError as error:
            kind = config["model_type"]
            raise UserError(f"the weights have no {error.args[0]}: they are not of a {kind} of transformers") from error

    return converted


def _dino_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    registers = config.get("num_register_tokens", 0)
    return {"init_values": 1.0, "reg_tokens": registers, "no_embed_class": bool(registers)}


_DINO = (_dino_arguments, _checked(_of_dinov2), IMAGENET_MEAN, IMAGENET_STD, "bicubic")
_SIGLIP = (lambda config: {"class_token": False, "global_pool": "map"}, _checked(_of_siglip), HALF, HALF, "bicubic")
# model_type -> arguments of timm's VisionTransformer, key map, mean, std, interpolation
LAYOUTS: dict[str, Any] = {
    "vit": (lambda config: {}, _checked(_of_vit), HALF, HALF, "bilinear"),
    "dinov2": _DINO,
    "dinov2_with_registers": _DINO,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
}


class Embedder(nn.Module):
    """An image encoder that returns a vector [B, D], followed by a classifier."""

    def __init__(self, encoder: nn.Module, width: int, num_classes: int):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


@cache
def open_clip_spec(name: str) -> ModelSpec:
    """The image encoder of an open_clip network, NAME/WEIGHTS; its output is the embedding compared with text."""
    open_clip = needed("open_clip", f"open_clip:{name}", "open_clip_torch")
    architecture, _, tag = name.partition("/")
    known = open_clip.list_pretrained()
    if (architecture, tag) not in known:
        tags = [t for a, t in known if a == architecture]
        raise UserError(
            f"open_clip has no weights '{tag}' of {architecture}: "
            + (f"it has {', '.join(tags)}" if tags else "write it as open_clip:ViT-B-32/openai")
        )
    config = open_clip.get_model_config(architecture)
    cfg = open_clip.get_pretrained_cfg(architecture, tag) or {}
    size = config["vision_cfg"].get("image_size", 224)

    def build(num_classes: int = CLASSES, pretrained: bool = False, **_: Any) -> nn.Module:
        try:
            model = open_clip.create_model(  # with the activation the weights were trained with: open_clip only warns
                architecture, pretrained=tag if pretrained else None, force_quick_gelu=cfg.get("quick_gelu", False)
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"cannot read the weights of open_clip:{name}: {first_line(error)}") from error
        return Embedder(without_inplace(model.visual), config["embed_dim"], num_classes)

    taps = {"pooled": Tap("head", "vector", "input")}
    return ModelSpec(
        f"open_clip:{name}",
        build,
        taps,
        ("pooled",),
        "head",
        input_shape=(3, size, size),
        mean=tuple(cfg.get("mean", open_clip.OPENAI_DATASET_MEAN)),
        std=tuple(cfg.get("std", open_clip.OPENAI_DATASET_STD)),
        published=Published(classes=0, interpolation=cfg.get("interpolation", "bicubic")),
    )
