"""Names the action in a sensor recording, from an exported ONNX graph (float32 or int8), without torch:

    python examples/sensor_without_torch.py exported/model_int8.onnx a1_s2_t1_inertial.mat

It needs numpy, scipy and onnxruntime. A recording of UTD-MHAD (d_iner [T, 6]) is resampled to the network's window as
in training: by linear interpolation, with averages if the window is shorter than the recording.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import onnxruntime
from scipy.io import loadmat

COLUMNS = {"accel": slice(0, 3), "gyro": slice(3, 6), "inertial": slice(0, 6)}


def window(values: np.ndarray, length: int) -> np.ndarray:
    """[C, T] -> [C, L]: a triangle filter about each new sample, as wide as a step of the coarser of the two grids."""
    step = values.shape[1] / length
    centres = (np.arange(length) + 0.5) * step - 0.5
    reach = max(step, 1.0)
    weights = np.maximum(0, 1 - np.abs(np.arange(values.shape[1])[None] - centres[:, None]) / reach)  # [L, T]
    return values @ (weights / weights.sum(1, keepdims=True)).T


def main(graph: str, recording: str) -> None:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    reads = json.loads(about["preprocess"])
    values = loadmat(recording)["d_iner"].T[COLUMNS[reads["modality"]]]
    x = window(values.astype(np.float64), reads["shape"][1]).astype(np.float32)[None]
    (logits,) = session.run(None, {"input": x})
    p = np.exp(logits[0] - logits[0].max())
    p /= p.sum()
    for i in p.argsort()[::-1][:3]:
        print(f"{about['classes'].splitlines()[i]}  {100 * p[i]:.1f} %")
    assert "torch" not in sys.modules


if __name__ == "__main__":
    main(*sys.argv[1:])
