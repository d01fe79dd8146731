"""Caches of weights as timm, torchvision and the Hub keep them, so that published names work without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fill(root: Path, repo: str, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """One repository of the Hub in the cache below `root` (HF_HOME): config.json and model.safetensors."""
    from safetensors.torch import save_file

    folder = root / "hub" / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in state.items()}, snapshot / "model.safetensors")


def fill_torch(root: Path, name: str, model: nn.Module) -> None:
    """The weights torchvision publishes under `name` in the cache below `root` (TORCH_HOME)."""
    from torchvision import models

    url = models.get_model_weights(name)["IMAGENET1K_V1"].url
    folder = root / "hub" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / url.rpartition("/")[2])


def offline(root: Path) -> dict[str, str]:
    """Environment of a command that finds these caches and asks no server."""
    return {"HF_HOME": str(root), "HF_HUB_OFFLINE": "1", "TORCH_HOME": str(root / "torch")}


def made(kind: str) -> tuple[nn.Module, str]:
    """A small network of transformers, and which of its outputs the classifier would read."""
    import transformers as packages

    if kind == "vit":
        return packages.ViTModel(packages.ViTConfig(**SMALL, intermediate_size=64)), "class"
    if kind == "siglip_vision_model":
        return packages.SiglipVisionModel(packages.SiglipVisionConfig(**SMALL, intermediate_size=64)), "pooler"
    name = {"dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}[kind]
    return getattr(packages, f"{name}Model")(getattr(packages, f"{name}Config")(**SMALL, mlp_ratio=2)), "pooler"


def saved(model: Any, folder: Path, prefix: str = "") -> Path:
    """In the layout of published files: transformers' own, under the prefix of the class they were saved from."""
    from safetensors.torch import load_file, save_file

    model.save_pretrained(folder)
    if prefix:
        state = load_file(folder / "model.safetensors")
        save_file({f"{prefix}{k}": v for k, v in state.items()}, folder / "model.safetensors")
    return folder
