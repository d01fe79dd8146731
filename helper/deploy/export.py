"""A trained network outside the toolbox: its data, predictions for single sensor files, ONNX, and its cost."""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.files import make_folder
from core.packages import needed
from core.protocols import UserError
from core.taps import TappedNet
from dataset.recordings.sensors import read_sensor, window
from dataset.single_file import InputFormat
from helper.deploy.as_trained import recorded_shapes
from helper.deploy.cost import deployed_count, macs
from helper.networks.checkpoint import read_checkpoint
from helper.networks.load import Network, load_network


@dataclass(frozen=True)
class Classifier:
    """A network and the checkpoint's record of its input. classes: names, in the order of the logits."""

    net: TappedNet
    network: Network
    classes: tuple[str, ...]
    modality: str  # its input, such as accel or video
    shape: tuple[int, ...]  # shape of one sample

    @property
    def input(self) -> str:
        return self.net.spec.input

    def read(self, path: Path) -> Tensor:
        """[1, C, L] of a sensor file."""
        if self.input != "sensor":
            raise UserError(
                f"{self.network.checkpoint.path} reads {self.modality}, but '{path}' is a sensor recording: "
                "give the checkpoint of a student that reads the sensor"
            )
        return window(read_sensor(path, self.modality), self.shape[1])[None]

    @torch.no_grad()
    def predict(self, path: Path) -> list[tuple[str, float]]:
        """Every class with its probability, the likeliest first."""
        logits = self.net({self.input: self.read(path)})["logits"]
        p, order = logits[0].float().softmax(0).sort(descending=True)
        return [(self.classes[i], float(v)) for i, v in zip(order.tolist(), p, strict=True)]


def load_classifier(path: str | Path, model: str | None = None) -> Classifier:
    """From a checkpoint of a run on action recordings. UserError if the file has no record of its input."""
    meta: Mapping[str, Any] = read_checkpoint(path).meta
    if missing := [k for k in ("classes", "modalities", "shapes") if k not in meta]:
        raise UserError(
            f"{path} does not record its input (missing: {', '.join(missing)}): give a checkpoint of a run on action "
            "recordings, such as --dataset utd_mhad; predict.py reads images and videos"
        )
    shapes = recorded_shapes(path)
    network = load_network(path, model, len(meta["classes"]), shapes, flag="--model")
    net = network.tapped().eval().requires_grad_(False)
    entry = network.spec.input
    return Classifier(net, network, tuple(meta["classes"]), meta["modalities"][entry], shapes[entry])


class Plain(nn.Module):
    """Input [B, ...] as the data set yields it -> logits [B, K]; with the normalisation, without hooks."""

    def __init__(self, net: TappedNet):
        super().__init__()
        self.model, self.normalised = net.model, hasattr(net, "mean")
        if self.normalised:
            self.mean: Tensor
            self.std: Tensor
            self.register_buffer("mean", net.mean)
            self.register_buffer("std", net.std)

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - self.mean) / self.std if self.normalised else x)


def export_onnx(classifier: Classifier, out: Path) -> None:
    """Write the whole network, including the Gramian field, as an ONNX graph of any batch size: `input` -> `logits`.

    The file's metadata holds the class names and a description of the input.
    """
    metadata = {
        "classes": "\n".join(classifier.classes),
        "modality": classifier.modality,
        "input": "x".join(map(str, classifier.shape)),
        "preprocess": json.dumps(
            InputFormat(classifier.input, classifier.shape, modality=classifier.modality).as_dict()
        ),
    }
    write_onnx(Plain(classifier.net).eval(), torch.randn(2, *classifier.shape), out, metadata)


def exported_program(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """A program for any batch size. example: a batch of two."""
    shapes = ({0: torch.export.Dim("batch", min=1, max=4096)},)
    return torch.export.export(model, (example,), dynamic_shapes=shapes, strict=False)


def write_onnx(model: Plain, example: Tensor, out: Path, metadata: Mapping[str, str]) -> None:
    """Write any network in evaluation mode. example: a batch of two. metadata: of the file."""
    onnx = needed("onnx")
    needed("onnxscript")
    batch = torch.export.Dim("batch", min=1, max=4096)
    with contextlib.redirect_stdout(io.StringIO()):  # some versions of onnxscript print the number of applied rules
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
    onnx.helper.set_model_props(graph, dict(metadata))
    onnx.checker.check_model(graph)
    make_folder(out.parent)
    onnx.save_model(graph, str(out))


def onnx_session(path: Path) -> Any:
    """An onnxruntime session on one thread."""
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def onnx_function(path: Path) -> Callable[[Tensor], Tensor]:
    """The graph as a function of a batch, on one thread."""
    session = onnx_session(path)
    return lambda x: torch.from_numpy(session.run(None, {"input": x.numpy()})[0])


MEASURED = "One sample, float32, milliseconds of the processor on one thread, median of {} calls"  # by latency()


def latency(run: Any, repetitions: int = 30) -> float:
    """Median milliseconds of one call of `run` on one thread, after five warm-up calls, in processor time of that
    thread, which other work on the machine does not affect."""
    threads, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for _ in range(5 + repetitions):
            started = time.thread_time()
            run()
            times.append(time.thread_time() - started)
    finally:
        torch.set_num_threads(threads)
    return 1000 * statistics.median(times[5:])


def report(classifier: Classifier, onnx_file: Path | None = None, repetitions: int = 30) -> dict[str, float | str]:
    """Parameters and MACs of one sample, and the latency of one sample on one CPU thread, in float32, with torch; with
    `onnx_file`, also its size and its latency in onnxruntime."""
    shapes = {classifier.input: classifier.shape}
    x = torch.randn(1, *classifier.shape)
    with torch.no_grad():
        torch_ms = latency(lambda: classifier.net({classifier.input: x}), repetitions)
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
