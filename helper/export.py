"""A trained network outside of the toolbox: its data, predictions for single sensor files, ONNX, and its cost."""

from __future__ import annotations

import contextlib
import io
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dataset.base import DataOptions
from dataset.sensors import read_sensor, window
from helper.checkpoint import make_folder, read_checkpoint
from helper.cost import deployed_count, macs
from helper.networks import Network, load_network
from helper.protocols import UserError
from helper.taps import TappedNet


def recorded_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Entry of Batch.inputs -> per-sample shape, as the checkpoint's run recorded them; {} where it did not."""
    shapes = read_checkpoint(path).meta.get("shapes", {})
    return {k: tuple(v) for k, v in shapes.items()}


def options_as_trained(path: str | Path, root: Path, image_size: int | None = None, **given: Any) -> DataOptions:
    """The data of a checkpoint: whatever is None or absent in `given` is as its training recorded it, if it did.

    Of images that is their size, of action recordings everything.
    """
    meta, shapes = read_checkpoint(path).meta, recorded_shapes(path)
    read, image, video, sensor = (shapes.get(k) for k in (meta.get("reads"), "image", "video", "sensor"))
    modality = given.pop("modality", None) or (meta.get("modalities", {}).get(meta.get("reads")) if read else None)
    segments = given.pop("num_segments", None) or (video[0] if video else None)
    given["more"] = as_sampled(meta, given.get("more", {}), image_size in (None, video[-1] if video else None))
    return DataOptions(
        root=root,
        image_size=image_size or next((shape[-1] for shape in (video, image) if shape), None),
        modality=(modality,) if modality else (),
        data_split=given.pop("data_split", None) or meta.get("data_split"),
        window=sensor[-1] if sensor else None,
        **({"num_segments": segments} if segments else {}),
        **given,
    )


def as_sampled(meta: Mapping[str, Any], more: Mapping[str, Any], same_size: bool) -> dict[str, Any]:
    """Settings of lists of videos, those that are None or absent as the checkpoint recorded them.

    same_size: whether clips are cropped to the side of training; the shorter side of frames goes with that.
    """
    recorded = {k: meta[k] for k in ("sampling", "short_side") if k in meta and (same_size or k == "sampling")}
    return {**more, **{k: v for k, v in recorded.items() if more.get(k) is None}}


def told_of_clips(path: str | Path, options: DataOptions) -> str | None:
    """One line on the clips a network of videos is evaluated on, where its checkpoint says what it was trained on:
    that they are the same, or each difference. None where it does not say, or reads no list of videos."""
    meta, shapes = read_checkpoint(path).meta, recorded_shapes(path)
    if "video" not in shapes or "sampling" not in meta:
        return None
    frames, *_, side = shapes["video"]
    trained = {"num_segments": frames, "image_size": side} | {k: meta[k] for k in ("sampling", "short_side")}
    now = {"num_segments": options.num_segments, "image_size": options.image_size, **options.more}
    others = [f"--{k} {now[k]} (trained with {v})" for k, v in trained.items() if now.get(k) not in (None, v)]
    if others:
        return f"evaluated otherwise than trained: {', '.join(others)}"
    return f"as trained: {frames} frames of {side} px, {meta['sampling']} sampling, shorter side {meta['short_side']}"


@dataclass(frozen=True)
class Classifier:
    """A network and what its checkpoint says of its input. classes: names, in the order of the logits."""

    net: TappedNet
    network: Network
    classes: tuple[str, ...]
    modality: str  # what it reads, as accel or video
    shape: tuple[int, ...]  # of one sample

    @property
    def input(self) -> str:
        return self.net.spec.input

    def read(self, path: Path) -> Tensor:
        """[1, C, L] of a sensor file."""
        if self.input != "sensor":
            raise UserError(
                f"{self.network.checkpoint.path} reads {self.modality}, and '{path}' is to be read by a network of a "
                "sensor: name a student's checkpoint"
            )
        return window(read_sensor(path, self.modality), self.shape[1])[None]

    @torch.no_grad()
    def predict(self, path: Path) -> list[tuple[str, float]]:
        """Every class with its probability, the likeliest first."""
        logits = self.net({self.input: self.read(path)})["logits"]
        p, order = logits[0].float().softmax(0).sort(descending=True)
        return [(self.classes[i], float(v)) for i, v in zip(order.tolist(), p, strict=True)]


def load_classifier(path: str | Path, model: str | None = None, flag: str = "--model") -> Classifier:
    """From a checkpoint of a run on action recordings. UserError where the file does not say what it reads."""
    meta: Mapping[str, Any] = read_checkpoint(path).meta
    if missing := [k for k in ("classes", "modalities", "shapes") if k not in meta]:
        raise UserError(
            f"{path} does not say what it reads ({', '.join(missing)}); name a checkpoint of a run on action "
            "recordings (--dataset utd_mhad and the like)"
        )
    shapes = recorded_shapes(path)
    network = load_network(path, model, len(meta["classes"]), shapes, flag=flag)
    net = network.tapped().eval().requires_grad_(False)
    entry = network.spec.input
    return Classifier(net, network, tuple(meta["classes"]), meta["modalities"][entry], shapes[entry])


class Plain(nn.Module):
    """Input [B, ...] as the data set yields it in, logits [B, K] out; normalisation and all, and no hooks."""

    def __init__(self, net: TappedNet):
        super().__init__()
        self.model, self.normalised = net.model, hasattr(net, "mean")
        if self.normalised:
            self.register_buffer("mean", net.mean)
            self.register_buffer("std", net.std)

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - self.mean) / self.std if self.normalised else x)


def needs(package: str) -> Any:
    """Import an optional package, or say in one sentence which is missing."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"this needs the package {package}: pip install {package} ({error})") from error


def export_onnx(classifier: Classifier, out: Path) -> None:
    """Write the whole network, Gramian field included, as an ONNX graph of any batch size: `input` -> `logits`.

    The class names and what the input is stand in the file's metadata.
    """
    told = {
        "classes": "\n".join(classifier.classes),
        "modality": classifier.modality,
        "input": "x".join(map(str, classifier.shape)),
    }
    write_onnx(Plain(classifier.net).eval(), torch.randn(2, *classifier.shape), out, told)


def write_onnx(model: Plain, example: Tensor, out: Path, told: Mapping[str, str]) -> None:
    """The same of any network in evaluation mode. example: a batch of two. told: metadata of the file."""
    onnx = needs("onnx")
    needs("onnxscript")
    batch = torch.export.Dim("batch", min=1, max=4096)
    with contextlib.redirect_stdout(io.StringIO()):  # some versions of onnxscript tell how many rules they applied
        program = torch.onnx.export(
            model,
            (example,),
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=({0: batch},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    onnx.helper.set_model_props(graph, dict(told))
    onnx.checker.check_model(graph)
    make_folder(out.parent)
    onnx.save_model(graph, str(out))


def onnx_session(path: Path) -> Any:
    """An onnxruntime session on one thread."""
    runtime = needs("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


MEASURED = "One sample, float32, milliseconds of the processor on one thread, median of {} calls"  # by latency()


def latency(run: Any, repetitions: int = 30) -> float:
    """Median milliseconds of one call of `run`, after five that do not count, by the processor's clock of the calling
    thread, which other work on the machine does not stretch; `run` is to use no other thread."""
    for _ in range(5):
        run()
    times = []
    for _ in range(repetitions):
        started = time.thread_time()
        run()
        times.append(time.thread_time() - started)
    return 1000 * statistics.median(times)


def report(classifier: Classifier, onnx_file: Path | None = None, repetitions: int = 30) -> dict[str, float | str]:
    """Parameters and MACs of one sample, and the latency of one sample on one CPU thread, in float32, with torch; with
    `onnx_file`, its size and its latency in onnxruntime too."""
    shapes = {classifier.input: classifier.shape}
    x = torch.randn(1, *classifier.shape)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            torch_ms = latency(lambda: classifier.net({classifier.input: x}), repetitions)
    finally:
        torch.set_num_threads(threads)
    row: dict[str, float | str] = {
        "network": classifier.network.spec.name,
        "reads": f"{classifier.modality} {'x'.join(map(str, classifier.shape))}",
        "parameters (M)": deployed_count(classifier.net.model) / 1e6,
        "MACs (M)": macs(classifier.net, shapes, torch.device("cpu")) / 1e6,
        "torch (ms)": torch_ms,
    }
    if onnx_file is not None:
        session, numbers = onnx_session(onnx_file), x.numpy()
        row["file (MB)"] = onnx_file.stat().st_size / 1e6
        row["onnxruntime (ms)"] = latency(lambda: session.run(None, {"input": numbers}), repetitions)
    return row
