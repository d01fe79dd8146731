"""Selected frames of a clip: by decoding up to the last one, by seeking to key frames, or from a cache of decoded
frames. All three ways give the same pixels. PyAV decodes unless --decoder opencv is given.

Shape letters: T frames, h w pixels, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from core.packages import needed
from core.protocols import UserError
from dataset.clips.clip_transforms import as_clip, resize, short_side_size
from dataset.clips.decode import (
    ClipSource,
    broken,
    check_length,
    check_sizes,
    count_images,
    opened,
    pixels,
    read_clip,
    read_image,
    require_content,
    require_size,
    without_colour,
)
from dataset.clips.frame_cache import FrameCache
from dataset.images.files import UnreadableError

# for other files OpenCV guesses the number of frames from the duration
COUNTED = frozenset({".mp4", ".m4v", ".mov", ".avi"})

# OpenCV and its FFmpeg would write warnings to the console; errors are raised here. They read this when they start.
QUIET = (("OPENCV_LOG_LEVEL", "SILENT"), ("OPENCV_FFMPEG_LOGLEVEL", "-8"))
EXACT_HEADERS = frozenset({"h264", "hevc", "vp8", "vp9", "av1"})  # one packet is one frame


@lru_cache(maxsize=1 << 16)
def layout(path: Path, stamp: int) -> tuple[int, tuple[int, ...] | None, tuple[int, ...]]:
    """(number of frames, presentation times in order or None, those of key frames) from the packets, without decoding.

    Headers are unreliable: Matroska has no count, some AVI files count one frame too many. If a packet may hold no
    frame, the frames are decoded once to count them. stamp: of the file, so that a changed file is read again. Times
    are None if they do not identify frames (AVI with reordered frames).
    """
    with opened(path) as (container, stream):
        promised = stream.frames
        packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size]
        exact = stream.codec_context.name in EXACT_HEADERS
        timed = container.format.name != "avi" and exact
    count = len(packets)
    if not exact:
        with opened(path) as (container, stream):
            count = sum(1 for _ in container.decode(stream))
    check_length(path, count, promised)
    times = sorted(p for p, _ in packets if p is not None)
    if not timed or len(set(times)) != count:
        return count, None, ()
    return count, tuple(times), tuple(sorted(p for p, is_key in packets if is_key))


def _decoded(path: Path, wanted: Sequence[int], seek: bool) -> dict[int, np.ndarray]:
    """Frame number -> uint8 [h, w, 3], for every number in `wanted` (sorted, without repetition)."""
    count, times, keys = layout(path, _mtime(path))
    found: dict[int, np.ndarray] = {}
    missing = set(wanted)
    with opened(path) as (container, stream):
        walk: Iterator[tuple[int, Any]] = enumerate(container.decode(stream))
        if seek and times:
            walk = _sought(container, stream, wanted, times, keys)
        for number, frame in walk:
            if number in missing:
                found[number] = pixels(frame)
                missing.discard(number)
            if number >= wanted[-1] and not missing:
                break
    if missing:
        raise broken(path, f"frame {min(missing) + 1} of {count} cannot be decoded")
    return found


def _sought(
    container: Any, stream: Any, wanted: Sequence[int], times: Sequence[int], keys: Sequence[int]
) -> Iterator[tuple[int, Any]]:
    """Frames decoded from the key frame before each wanted one; the frames between are skipped."""
    number_of = {time: i for i, time in enumerate(times)}
    here: int | None = None  # time of the last decoded frame
    frames: Iterator[Any] = container.decode(stream)
    for number in wanted:
        time = times[number]
        key = max((k for k in keys if k <= time), default=times[0])
        if key > (times[0] if here is None else here):
            container.seek(key, stream=stream, backward=True)
            frames = container.decode(stream)
        for frame in frames:
            here = frame.pts
            if here in number_of:
                yield number_of[here], frame
            if here >= time:
                break


@contextmanager
def _captured(path: Path) -> Iterator[Any]:
    """Open a video file with OpenCV, on one thread, rotated as the file demands. UserError if OpenCV is missing."""
    for name, value in QUIET:
        os.environ.setdefault(name, value)
    cv2 = needed("cv2", "--decoder opencv", "opencv-python-headless")
    require_content(path)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    try:
        if not capture.isOpened():
            raise broken(path, "OpenCV cannot open it")
        size = (capture.get(what) for what in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        require_size(path, *map(int, size))
        yield capture
    finally:
        capture.release()


@lru_cache(maxsize=1 << 16)
def opencv_count(path: Path, stamp: int) -> int:
    """Number of frames that OpenCV delivers, counted once, as its own count is a guess. stamp: as in layout()."""
    with _captured(path) as capture:
        import cv2

        promised = capture.get(cv2.CAP_PROP_FRAME_COUNT) if path.suffix.lower() in COUNTED else 0
        count = 0
        while capture.grab():
            count += 1
    check_length(path, count, round(promised))
    return count


def _by_opencv(path: Path, wanted: Sequence[int] | None = None) -> dict[int, np.ndarray]:
    """Frame number -> uint8 RGB [h, w, 3], for every number in `wanted`, or for all of them: read in order,
    as OpenCV's seeking is not exact."""
    count = opencv_count(path, _mtime(path))  # a clip with too few frames is damaged
    missing = set(range(count) if wanted is None else wanted)
    found: dict[int, np.ndarray] = {}
    number = 0
    with _captured(path) as capture:
        while missing and capture.grab():
            if number in missing:
                is_read, picture = capture.retrieve()
                if not is_read:
                    raise broken(path, f"frame {number + 1} cannot be decoded")
                found[number] = np.ascontiguousarray(picture[..., ::-1])  # BGR
                missing.discard(number)
            number += 1
    if missing:
        raise broken(path, f"frame {min(missing) + 1} of {count} cannot be decoded")
    check_length(path, len(found), 0)
    check_sizes(found.values(), path)
    return found


def shrunk(frames: np.ndarray, short_side: int) -> np.ndarray:
    """uint8 [T, h, w, C] with the shorter side resized; see clip_transforms.resize."""
    size = short_side_size(frames.shape[1], frames.shape[2], short_side)
    return np.ascontiguousarray(resize(as_clip(frames), *size).permute(0, 2, 3, 1).numpy())


class FrameReader:
    """Frames of clips at one short side, uint8 [T, h, w, C].

    cache: folder of decoded frames; None decodes every time. seek: start at the key frame before a wanted frame
    instead of decoding all frames before it; faster if key frames are close; PyAV only. decoder: av or opencv.
    """

    def __init__(self, short_side: int, cache: Path | None = None, seek: bool = False, decoder: str = "av"):
        if seek and decoder != "av":
            raise UserError(
                f"--seek works with PyAV only: leave it out, or leave out --decoder {decoder}, which reads frames in "
                "order"
            )
        self.short_side, self.seek, self.decoder = short_side, seek, decoder
        # whole clips after the first resize of the pipeline, so that cached and decoded frames are equal
        prefix = "bilinear_" if decoder == "av" else f"bilinear_{decoder}_"
        self.cache = None if cache is None else FrameCache(cache, short_side, self._whole, prefix, "--frame_cache")

    def _whole(self, source: ClipSource) -> np.ndarray:
        if self.decoder == "opencv" and source.template is None:
            return shrunk(without_colour(np.stack(list(_by_opencv(source.path).values()))), self.short_side)
        return shrunk(read_clip(source), self.short_side)

    def count(self, source: ClipSource) -> int:
        """Number of readable frames. UserError as for reading."""
        if source.template is not None:
            if not (count := count_images(source)):
                raise UnreadableError(f"'{source.path}' holds no frames")
            return count
        if self.cache is not None:
            return len(self.cache.get(source))
        if self.decoder == "opencv":
            return opencv_count(source.path, _mtime(source.path))
        return layout(source.path, _mtime(source.path))[0]

    def read(self, source: ClipSource, index: Sequence[int]) -> np.ndarray:
        """The frames of these numbers, in this order; numbers may repeat."""
        if self.cache is not None:
            return self.cache.frames(source, index)
        wanted = sorted(set(index))
        if source.template is not None:
            found = {i: read_image(source, i) for i in wanted}
        elif self.decoder == "opencv":
            found = _by_opencv(source.path, wanted)
        else:
            found = _decoded(source.path, wanted, self.seek)
        check_sizes(found.values(), source.path)
        frames = shrunk(np.stack([found[i] for i in wanted]), self.short_side)
        place = {number: i for i, number in enumerate(wanted)}
        return frames[[place[i] for i in index]]


def _mtime(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0
