"""Exports that time one call instead of thirty, and list what PyTorch knows of ONNX once a process."""

import functools

from helper.deploy import export, quantize


def shorten(setattr=setattr) -> None:
    """setattr: that of a monkeypatch, to take it back."""
    setattr(export.latency, "__defaults__", (1,))
    setattr(quantize, "ROUNDS", 1)
    setattr(quantize, "CALLS", 1)


@functools.cache
def _known():
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    return staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # it is called on the class and on instances


def list_operators_once(setattr) -> None:
    """A second of each export; nothing is added to the list later."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    setattr(ONNXRegistry, "from_torchlib", _known())
