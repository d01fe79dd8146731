"""Frame sampling: SampleFrames and DenseSampleFrames of the published Kinetics configurations.

Letters: n frames of the clip, k segments. All indices are 0-based. rng: draws in training; None: the fixed positions of
evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.protocols import UserError

DENSE_RANGE = 64  # frames that a dense clip spans
DENSE_STARTS = 10  # of dense evaluation


def sample_frames(n: int, k: int, rng: np.random.Generator | None = None, *, twice: bool = False) -> np.ndarray:
    """int64 [k] ([2k] with `twice`, in evaluation), one frame of each of k equal segments. UserError if the clip has
    no frames."""
    if n < 1:
        raise UserError("a clip without frames cannot be sampled")
    index = _test_offsets(n, k, twice) if rng is None else _train_offsets(n, k, rng)
    return np.mod(index, n).astype(np.int32).astype(np.int64)  # truncated after wrapping


def _train_offsets(n: int, k: int, rng: np.random.Generator) -> np.ndarray:
    step = n // k
    if step > 0:
        return np.arange(k) * step + rng.integers(step, size=k)
    return np.around(np.arange(k) * (n / k))  # to even, as published


def _test_offsets(n: int, k: int, twice: bool) -> np.ndarray:
    step = n / k
    offsets = np.arange(k) * step + step / 2
    return np.concatenate([offsets, np.arange(k) * step]) if twice else offsets


def dense_frames(n: int, k: int, rng: np.random.Generator | None = None, starts: int = DENSE_STARTS) -> np.ndarray:
    """k frames evenly over DENSE_RANGE from a random start: int64 [k]; in evaluation from `starts` fixed ones: [starts
    * k]."""
    if n < 1:
        raise UserError("a clip without frames cannot be sampled")
    room, stride = max(1, 1 + n - DENSE_RANGE), DENSE_RANGE // k
    if rng is None:
        first = np.linspace(0, room - 1, num=starts, dtype=int)
    else:
        first = np.array([0 if room == 1 else rng.integers(room - 1)])
    return ((first[:, None] + np.arange(k)[None] * stride) % n).reshape(-1).astype(np.int64)


def segment_frames(num_frames: int, num_segments: int, draw: Sequence[float] | None = None) -> list[int]:
    """The frames of a clip that a network reads, 0-based (TSN sampling; Wang et al., ECCV 2016, and its code).

    draw: K numbers in [0, 1) that choose a frame of every segment, in training; None: the middles, in evaluation.
    Training: segments of F // K frames, one frame of each; evaluation: int(tick / 2 + tick k) with tick = F / K.
    UserError if there are fewer frames than segments (the published code then repeats the first frame).
    """
    if num_frames < num_segments:
        raise UserError(f"{num_frames} frames are fewer than --num_segments {num_segments}: lower --num_segments")
    if draw is None:
        return _test_offsets(num_frames, num_segments, False).astype(int).tolist()
    length = num_frames // num_segments
    return [k * length + int(u * length) for k, u in enumerate(draw)]
