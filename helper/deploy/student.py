"""A trained network in your own program: `student = models.load_student(path)`, images in [0, 1] -> logits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from core.packages import needed
from core.protocols import UserError, first_line
from dataset.single_file import InputFormat
from helper.deploy.as_trained import recorded_shapes
from helper.deploy.quantize import INT8_PROGRAM
from helper.networks.checkpoint import EXPORTED_WEIGHTS, infer_arch, read_checkpoint, weights_in
from helper.networks.load import Network, load_network, network_without_heads, published
from models import SMALL_IMAGE, model_dict

HUB = "hf_hub:"
EXPORTED = (EXPORTED_WEIGHTS, "model.onnx", "model.pt2", "model_int8.onnx", INT8_PROGRAM)


class Student(nn.Module):
    """A network from a checkpoint, in eval mode: inputs of the data set (images in [0, 1]) -> logits [B, K].

    It includes the normalisation and the deployed layers of its method (SimKD's projector and classifier). classes:
    names in the order of the logits; None if the checkpoint has none. taps: names of the features that features() can
    return. format: how a file becomes its input.
    """

    def __init__(self, network: Network, want: Sequence[str], classes: tuple[str, ...] | None, reads: InputFormat):
        super().__init__()
        self.net = network.tapped(want)
        self.network, self.classes, self.format = network, classes, reads
        self.taps = tuple(t for t in network.spec.taps if t not in network.spec.branches)
        self.eval()

    @property
    def name(self) -> str:
        return self.network.spec.name

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)["logits"]

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """The logits, and the taps given to load_student(taps=...)."""
        return self.net({self.net.spec.input: x}, ())


def load_student(
    path: str | Path,
    model: str | None = None,
    taps: Sequence[str] = (),
    image_size: int | None = None,
    flag: str = "model=",
) -> Student:
    """A trained network as an nn.Module in eval mode.

    path: a checkpoint, the folder of a run, a folder of scripts/export_student.py or its model.safetensors,
    hf_hub:USER/NAME, torchvision:NAME or timm:NAME. model: the architecture, if neither the file nor its path
    names it. taps: what features() returns in addition to the logits. image_size: side of the images, if the file does
    not record it. flag: the name of `model` in messages. Raises UserError.
    """
    place = found(path)
    file = path if published(place) else weights_in(place)
    exported = exported_config(Path(file))
    meta: Mapping[str, Any] = {}
    shapes: Mapping[str, tuple[int, ...]] = {}
    if published(file) is None:
        checkpoint = read_checkpoint(file)
        meta, shapes = checkpoint.meta, recorded_shapes(file)
        spec = model_dict[infer_arch(file, checkpoint, model, [*model_dict, *model_dict.aliases], flag)]
        if "input_shape" in exported or spec.input not in shapes:
            shapes = {spec.input: tuple(exported.get("input_shape", spec.input_shape))}
    network = network_without_heads(load_network(file, model, None, shapes, flag=flag), shapes)
    if network.spec.headless:
        raise UserError(f"{path} has no classifier ({network.lacks}), so it cannot predict: use it as a teacher")
    kind = network.spec.input
    shape = shapes.get(kind, network.spec.input_shape)
    if image_size is not None:
        shape = (*shape[:-2], image_size, image_size)
    if "preprocess" in exported and image_size is None:
        reads = InputFormat.from_dict(exported["preprocess"])
    else:  # networks for large images without a record of their training are assumed to be trained on ImageNet
        large = network.spec.input_shape[-1] > SMALL_IMAGE
        reads = InputFormat.of(kind, shape, {"dataset": "imagenet", **meta} if large else meta)
    names = meta.get("classes") or exported.get("classes")
    return Student(network, taps, None if names is None else tuple(map(str, names)), reads)


def found(path: str | Path) -> Path:
    """A file or folder on this machine; hf_hub:USER/NAME is downloaded, or read from the local cache."""
    if not str(path).startswith(HUB):
        return Path(path)
    name = str(path).removeprefix(HUB)
    hub = needed("huggingface_hub")
    try:
        repository, _, revision = name.partition("@")
        return Path(hub.snapshot_download(repository, revision=revision or None))
    except Exception as error:  # the client raises its own, requests' and httpx's errors
        raise UserError(
            f"{path} is not in the local cache of Hugging Face and cannot be downloaded ({first_line(error)}): check "
            "the name, or give a folder on this machine"
        ) from error


def exported_config(path: Path) -> dict[str, Any]:
    """config.json of an exported file's folder; {} for other files."""
    if path.name not in EXPORTED or not (file := path.with_name("config.json")).is_file():
        return {}
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read '{file}' ({error}): export the network again") from error
