"""Networks in int8: an exported ONNX graph with static quantisation (QDQ), calibrated on training samples."""

from __future__ import annotations

import contextlib
import io
import logging
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.log import progress
from core.protocols import DataSet, UserError
from helper.deploy.export import latency, needs, onnx_session

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
OVERFLOW = 0.03  # mean difference of a logit, in standard deviations, that rounding alone does not cause
ROUNDS, CALLS = 5, 20  # rounds of timing, all precisions in each


def calibration_samples(data: DataSet, entry: str, count: int) -> Iterator[Tensor]:
    """Batches of training inputs, augmented as in training, `count` samples in all."""
    size = min(32, count, len(data.train_labels))
    done = 0
    batches = data.train_loader(size, seed=0, device=torch.device("cpu"))
    for batch in progress(batches, "calibration", -(-count // size)):
        x = batch.inputs[entry][: count - done]
        yield x.contiguous()
        done += len(x)
        if done >= count:
            return


class Samples:
    """The source of batches for onnxruntime's calibrator."""

    def __init__(self, entry: str, batches: Iterable[Tensor]):
        self.entry, self.batches = entry, iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        x = next(self.batches, None)
        return None if x is None else {self.entry: x.numpy()}


def quantize_onnx(source: Path, out: Path, batches: Iterable[Tensor]) -> str:
    """Write `source` with int8 weights (symmetric, for each output channel) and int8 activations (one scale per
    tensor).

    Returns a sentence on what was quantised. UserError if onnxruntime fails or there is nothing to quantise.
    """
    batches = list(batches)
    _quantize(source, out, batches)
    narrow = _overflows(out, batches[0])
    if narrow:
        _quantize(source, out, batches, reduce_range=True)
    nodes = needs("onnx").load(str(out)).graph.node
    restored = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    weighted = [node for node in nodes if node.op_type in WEIGHTED]
    done = [node for node in weighted if set(node.input[:2]) <= restored]
    if not done:
        kinds = ", ".join(sorted({node.op_type for node in nodes if "Linear" not in node.op_type}))
        raise UserError(f"{source} has no operator that can be quantised to int8, only {kinds}: leave --int8 out")
    whole = Counter(node.op_type for node in nodes if not set(node.input) & restored)
    left = [f"{n} {kind}" for kind, n in sorted(whole.items()) if kind not in ("QuantizeLinear", "DequantizeLinear")]
    rest = f"; in float32 remain {', '.join(left)}" if left else ""
    bits = "; weights have 7 bits, as sums of 8-bit products overflow on this CPU" if narrow else ""
    return f"{len(done)} of {len(weighted)} convolutions and matrix products are in int8{rest}{bits}"


def _quantize(source: Path, out: Path, batches: Sequence[Tensor], **options: bool) -> None:
    tools: Any = needs("onnxruntime.quantization")
    entry = needs("onnx").load(str(source)).graph.input[0].name
    logger, level = logging.getLogger(), logging.getLogger().level
    try:
        logger.setLevel(logging.ERROR)  # it recommends preprocessing, which the exporter has already done
        with contextlib.redirect_stdout(io.StringIO()):
            tools.quantize_static(
                str(source),
                str(out),
                Samples(entry, batches),
                quant_format=tools.QuantFormat.QDQ,
                per_channel=True,
                activation_type=tools.QuantType.QInt8,
                weight_type=tools.QuantType.QInt8,
                **options,
            )
    except Exception as error:  # its own errors, numpy's and protobuf's
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{source} cannot be quantised to int8 ({reason[:160]}): leave --int8 out") from error
    finally:
        logger.setLevel(level)


def _overflows(path: Path, x: Tensor) -> bool:
    """Whether int8 kernels of this CPU overflow: x86 processors without VNNI add products of 8 bits in 16 bits."""
    runtime = needs("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL  # then computed in float32
    options.intra_op_num_threads = 1
    exact = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {exact.get_inputs()[0].name: x.numpy()}
    a, b = (session.run(None, feed)[0] for session in (exact, onnx_session(path)))
    return bool(abs(a - b).mean() > OVERFLOW * a.std())


def accuracy(predict: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, int]:
    """(top-1 in percent, samples)."""
    right = count = 0
    for x, labels in progress(batches, "evaluation, batches of the test set"):
        right += int((predict(x).argmax(1) == labels).sum())
        count += len(labels)
    return 100 * right / count, count


def in_bf16(model: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same network under autocast to bf16."""

    @torch.no_grad()
    def predict(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).float()

    return predict


@dataclass(frozen=True)
class Measured:
    """One precision. accuracy: top-1 in percent. bytes: of the file, None without one. latency: milliseconds of one
    sample on one CPU thread. ratio: of the latency to that of float32 in onnxruntime, measured in the same run."""

    precision: str
    accuracy: float
    bytes: int | None
    latency: float
    ratio: float


def compare(
    predictors: Sequence[tuple[str, Callable[[Tensor], Tensor], Path | None]],
    test: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    x: Tensor,
) -> list[Measured]:
    """Accuracy on the whole test set, size and latency of each; ratios refer to the first.

    test: the batches (inputs, labels) of the test set. x: one sample [1, ...] that is timed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name, *_ in predictors}
    try:
        for _ in range(ROUNDS):  # in turn, so that other work on the machine affects all equally
            for name, predict, _ in predictors:
                times[name].append(latency(lambda predict=predict: predict(x), CALLS))
    finally:
        torch.set_num_threads(threads)
    first = statistics.median(times[predictors[0][0]])
    rows = []
    for name, predict, path in predictors:
        value = statistics.median(times[name])
        top1, _ = accuracy(predict, test())
        rows.append(Measured(name, top1, None if path is None else path.stat().st_size, value, value / first))
    return rows
