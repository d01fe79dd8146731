"""A trained network outside the toolbox: a program of torch.export, an ONNX graph, and the latency of a call."""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.files import make_folder
from core.packages import needed
from core.taps import TappedNet
from dataset.single_file import InputFormat


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


def onnx_metadata(classes: Sequence[Any] | None, reads: InputFormat) -> dict[str, str]:
    """Of a graph's file: the names of the classes, if known, and a description of the input."""
    names = {"classes": "\n".join(map(str, classes))} if classes else {}
    return {**names, "input": "x".join(map(str, reads.shape)), "preprocess": json.dumps(reads.as_dict())}


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


def onnx_session(path: Path, fused: bool = True) -> Any:
    """An onnxruntime session on one thread. fused: False computes an int8 graph in float32."""
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    if not fused:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def onnx_function(path: Path, fused: bool = True) -> Callable[[Tensor], Tensor]:
    """The graph as a function of a batch, on one thread."""
    session = onnx_session(path, fused)
    entry = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {entry: x.numpy()})[0])


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
