"""Predictions for single files, by a checkpoint or an exported file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.protocols import UserError, first_line
from dataset.images.files import visible_below
from dataset.single_file import InputFormat
from helper.deploy.export import onnx_session
from helper.deploy.quantize import load_program
from helper.deploy.student import EXPORTED, exported_config, found, load_student
from helper.networks.load import published

BATCH = 32  # files of one forward pass


@dataclass(frozen=True)
class Prediction:
    """file: its path. x: the network's input. top: (class, probability), the most likely first."""

    file: Path
    x: Tensor
    top: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Predictor:
    """logits: batch of inputs -> [B, K]. classes: names, None for numbers. format: how a file becomes an input."""

    logits: Callable[[Tensor], Tensor]
    classes: Sequence[str] | None
    format: InputFormat

    def __call__(self, files: Sequence[Path], k: int = 5) -> Iterator[Prediction]:
        """The k most likely classes of every file."""
        for at in range(0, len(files), BATCH):
            chosen = files[at : at + BATCH]
            x = torch.stack([self.format.read(file) for file in chosen])
            p = self.logits(x).float().softmax(1)
            values, places = p.topk(min(k, p.shape[1]), dim=1)
            for file, one, row, numbers in zip(chosen, x, values.tolist(), places.tolist(), strict=True):
                yield Prediction(file, one, [(self.name(i), v) for i, v in zip(numbers, row, strict=True)])

    def name(self, number: int) -> str:
        return str(number) if self.classes is None else self.classes[number]

    def files(self, paths: Iterable[Path]) -> list[Path]:
        """The files among the paths, and the readable files in folders among them. UserError if there are none."""
        out = []
        for path in paths:
            if not path.is_dir():
                out.append(path)
                continue
            inside = sorted(p for p in visible_below(path) if p.suffix.lower() in self.format.endings and p.is_file())
            if not inside:
                endings = ", ".join(sorted(self.format.endings))
                raise UserError(f"'{path}' holds no file that a network of a{_n(self.format.kind)} reads ({endings})")
            out += inside
        return out


def _n(word: str) -> str:
    return f"n {word}" if word[0] in "aeiou" else f" {word}"


def open_predictor(
    path: str | Path, model: str | None = None, image_size: int | None = None, device: torch.device | None = None
) -> Predictor:
    """From anything that load_student() reads, or from an .onnx or .pt2 file of scripts/export_student.py.

    In a folder without a checkpoint, model.onnx or model.pt2 is read. Exported files record their input, and run on
    the CPU.
    """
    place = Path(path) if published(path) else found(path)
    if place.is_dir() and not (place / EXPORTED[0]).is_file():
        place = next((p for p in (place / name for name in EXPORTED[1:]) if p.is_file()), place)
    if place.suffix == ".onnx":
        return _onnx(place)
    if place.suffix == ".pt2":
        return _program(place)
    device = device or torch.device("cpu")
    student = load_student(path if published(path) else place, model, (), image_size, "--model").to(device)
    return Predictor(torch.no_grad()(lambda x: student(x.to(device)).cpu()), student.classes, student.format)


def _opened(path: Path, kind: str, load: Callable[[Path], Any]) -> Any:
    """load(path). UserError if the file is missing or damaged."""
    if not path.is_file():
        raise UserError(f"there is no file '{path}'")
    try:
        return load(path)
    except UserError:
        raise
    except Exception as error:  # onnxruntime and torch have separate errors for every stage of loading
        raise UserError(f"'{path}' is damaged or not an {kind} ({first_line(error)[:120]})") from error


def _onnx(path: Path) -> Predictor:
    session = _opened(path, "ONNX graph", onnx_session)
    written = session.get_modelmeta().custom_metadata_map
    exported = exported_config(path)
    reads = json.loads(written["preprocess"]) if "preprocess" in written else exported.get("preprocess")
    names = written["classes"].split("\n") if written.get("classes") else exported.get("classes")
    entry = session.get_inputs()[0].name
    return Predictor(lambda x: torch.from_numpy(session.run(None, {entry: x.numpy()})[0]), names, _stated(reads, path))


def _program(path: Path) -> Predictor:
    program, exported = _opened(path, "exported program", load_program), exported_config(path)
    return Predictor(program, exported.get("classes"), _stated(exported.get("preprocess"), path))


def _stated(reads: Any, path: Path) -> InputFormat:
    if reads is None:
        raise UserError(f"'{path}' does not record its input: export the network with scripts/export_student.py")
    return InputFormat.from_dict(reads)
