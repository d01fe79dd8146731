"""Networks in int8, calibrated on training samples: an ONNX graph (QDQ), or a program of torch.export (PT2E)."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.log import progress
from core.packages import needed
from core.protocols import DataSet, UserError, first_line
from helper.deploy.export import exported_program, latency, onnx_function

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
PT2E = "torchao.quantization.pt2e"
INT8_PROGRAM = "model_int8.pt2"  # of scripts/export_student.py
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


def evaluation_samples(data: DataSet, entry: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (inputs, labels) of the test set."""
    for batch in data.test_loader(125, device=torch.device("cpu")):
        yield batch.inputs[entry].contiguous(), batch.target


class Samples:
    """The source of batches for onnxruntime's calibrator."""

    def __init__(self, entry: str, batches: Iterable[Tensor]):
        self.entry, self.batches = entry, iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        x = next(self.batches, None)
        return None if x is None else {self.entry: x.numpy()}


def quantize_onnx(source: Path, out: Path, batches: Sequence[Tensor]) -> str:
    """Write `source` with int8 weights (symmetric, for each output channel) and int8 activations (one scale per
    tensor).

    Returns a sentence on what was quantised. UserError if onnxruntime fails or there is nothing to quantise.
    """
    _quantize(source, out, batches)
    narrow = _overflows(out, batches[0])
    if narrow:
        _quantize(source, out, batches, reduce_range=True)
    nodes = needed("onnx").load(str(out)).graph.node
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
    tools: Any = needed("onnxruntime.quantization")
    entry = needed("onnx").load(str(source)).graph.input[0].name
    try:
        # it recommends preprocessing, which the exporter has already done
        with _errors_alone(""), contextlib.redirect_stdout(io.StringIO()):
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
        raise UserError(
            f"{source} cannot be quantised to int8 ({first_line(error)[:160]}): leave --int8 out"
        ) from error


@contextlib.contextmanager
def _errors_alone(name: str) -> Iterator[None]:
    """Inside the context, a logger and its children drop messages below the level ERROR."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _overflows(path: Path, x: Tensor) -> bool:
    """Whether int8 kernels of this CPU overflow: x86 processors without VNNI add products of 8 bits in 16 bits."""
    a, b = (onnx_function(path, fused)(x) for fused in (False, True))
    return bool((a - b).abs().mean() > OVERFLOW * a.std(correction=0))


def quantize_program(model: nn.Module, batches: Sequence[Tensor], out: Path) -> str | None:
    """Write a program of torch.export with int8 weights and activations, by torchao's PT2E quantiser for x86.

    Activations have 7 bits on processors without VNNI, whose sums of 8-bit products overflow. The program computes in
    float32 what int8 kernels would; torch.compile makes the kernels. Returns why no file was written: torchao is
    missing, or cannot quantise the network.
    """
    if importlib.util.find_spec("torchao") is None:
        return "it needs the package torchao: pip install torchao"
    with _errors_alone("torch"):
        steps, x86 = needed(f"{PT2E}.quantize_pt2e"), needed(f"{PT2E}.quantizer.x86_inductor_quantizer")
    narrow = not torch.cpu._is_vnni_supported()
    example = batches[0][:2].clone()  # a view would bring the whole batch into the file
    try:
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config(reduce_range=narrow))
        prepared = steps.prepare_pt2e(exported_program(model, example).module(), quantizer)
        with torch.no_grad():
            for x in batches:
                prepared(x)
        program = exported_program(steps.convert_pt2e(prepared), example)
    except Exception as error:  # every stage has its own errors
        return f"torchao cannot quantise this network ({first_line(error)[:160]})"
    torch.export.save(program, out)
    return None


def load_program(path: Path) -> Callable[[Tensor], Tensor]:
    """A file of torch.export as a function of a batch. UserError if torchao, which wrote it, is missing."""
    with _errors_alone("torch"):
        if path.name == INT8_PROGRAM:
            needed(PT2E)
        return torch.no_grad()(torch.export.load(path).module())


def compiled(predict: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """With kernels of torch.compile for inference; int8 kernels need constants that are folded (freezing)."""
    from torch._inductor import config

    return torch.no_grad()(config.patch(freezing=True)(torch.compile(predict)))


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
    times: dict[str, list[float]] = {name: [] for name, *_ in predictors}
    for _ in range(ROUNDS):  # in turn, so that other work on the machine affects all equally
        for name, predict, _ in predictors:
            times[name].append(latency(lambda predict=predict: predict(x), CALLS))
    first = statistics.median(times[predictors[0][0]])
    rows = []
    for name, predict, path in predictors:
        value = statistics.median(times[name])
        top1, _ = accuracy(predict, test())
        rows.append(Measured(name, top1, None if path is None else path.stat().st_size, value, value / first))
    return rows
