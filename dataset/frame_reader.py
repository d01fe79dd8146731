"""Chosen frames of a clip: decoded to the last one wanted and converted where wanted, sought where that is nearer, or
taken from a cache of decoded frames. All three ways give the same pixels.

Shape letters: T frames, h w pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dataset.clip_transforms import as_clip, resize, short_side_size
from dataset.clips import ClipSource, FrameCache, read_clip
from helper.protocols import UserError

EXACT_HEADERS = frozenset({"h264", "hevc", "vp8", "vp9", "av1"})  # one packet is one frame


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise UserError(f"reading videos needs the package av: pip install av ({error})") from error
    return av


def _checked(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"there is no video '{path}'")
    if not path.stat().st_size:
        raise UserError(
            f"the video '{path}' is empty (0 bytes); fetch it again, or pass --skip_corrupt to leave it out"
        )
    return str(path)


def _broken(path: Path, error: Exception | str) -> UserError:
    return UserError(
        f"the video '{path}' is truncated or not a video ({error}); fetch it again, or pass --skip_corrupt to leave it "
        "out"
    )


@lru_cache(maxsize=1 << 16)
def layout(path: Path, stamp: int) -> tuple[int, tuple[int, ...] | None, tuple[int, ...]]:
    """(frames, presentation times in order or None, those of key frames) from the packets, without decoding.

    Headers lie: Matroska has no count, some AVI files one frame too many; where a packet may hold no frame, the frames
    are decoded once to be counted. stamp: of the file, so that a changed one is looked at again. Times are None where
    they do not name frames (AVI with reordered frames).
    """
    av = _av()
    try:
        with av.open(_checked(path), metadata_errors="ignore") as container:
            stream = container.streams.video[0]
            packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size]
            exact = stream.codec_context.name in EXACT_HEADERS
            timed = container.format.name != "avi" and exact
        count = len(packets)
        if not exact:
            with av.open(str(path), metadata_errors="ignore") as container:
                count = sum(1 for _ in container.decode(container.streams.video[0]))
    except (av.FFmpegError, IndexError, OSError, ValueError) as error:
        raise _broken(path, error) from error
    if not count:
        raise _broken(path, "it holds no frames")
    times = sorted(p for p, _ in packets if p is not None)
    if not timed or len(set(times)) != count:
        return count, None, ()
    return count, tuple(times), tuple(sorted(p for p, is_key in packets if is_key))


def _decoded(path: Path, wanted: Sequence[int], seek: bool) -> dict[int, np.ndarray]:
    """Frame number -> uint8 [h, w, 3], for every number in `wanted` (sorted, without repetition)."""
    av = _av()
    count, times, keys = layout(path, path.stat().st_mtime_ns)
    found: dict[int, np.ndarray] = {}
    try:
        with av.open(_checked(path), metadata_errors="ignore") as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"  # workers decode several files at once instead
            walk = _sought(container, stream, wanted, times, keys) if seek and times else _in_order(container, stream)
            last = wanted[-1]
            missing = set(wanted)
            for number, frame in walk:
                if number in missing:
                    found[number] = frame.to_ndarray(format="rgb24")
                    missing.discard(number)
                if number >= last and not missing:
                    break
    except (av.FFmpegError, IndexError, OSError, ValueError) as error:
        raise _broken(path, error) from error
    if missing:
        raise _broken(path, f"frame {min(missing) + 1} of {count} cannot be decoded")
    return found


def _in_order(container: Any, stream: Any) -> Iterator[tuple[int, Any]]:
    yield from enumerate(container.decode(stream))


def _sought(
    container: Any, stream: Any, wanted: Sequence[int], times: Sequence[int], keys: Sequence[int]
) -> Iterator[tuple[int, Any]]:
    """Frames from the key frame before each wanted one, skipping what lies between."""
    number_of = {time: i for i, time in enumerate(times)}
    here: int | None = None  # time of the frame decoded last
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


def same_size(frames: dict[int, np.ndarray], path: Path) -> None:
    if len({f.shape for f in frames.values()}) > 1:
        raise UserError(f"the frames of '{path}' are of different sizes; convert it again, or pass --skip_corrupt")


class ShortSideCache(FrameCache):
    """Decoded clips, resized as the pipeline does first of all, so that nothing depends on whether they were cached."""

    def read(self, source: ClipSource) -> np.ndarray:
        return shrunk(read_clip(source), self.short_side)

    def path(self, source: ClipSource) -> Path | None:
        path = super().path(source)
        return None if path is None else path.with_name(f"bilinear_{path.name}")


def shrunk(frames: np.ndarray, short_side: int) -> np.ndarray:
    """uint8 [T, h, w, C] with the shorter side resized; see clip_transforms.resize."""
    size = short_side_size(frames.shape[1], frames.shape[2], short_side)
    return np.ascontiguousarray(resize(as_clip(frames), *size).permute(0, 2, 3, 1).numpy())


class FrameReader:
    """Frames of clips at one short side, in [T, h, w, C] uint8.

    cache: folder of decoded frames; None decodes what is asked for, every time. seek: go to the key frame before a
    wanted frame rather than decode what lies between; worth it where key frames are close.
    """

    def __init__(self, short_side: int, cache: Path | None = None, seek: bool = False):
        self.short_side, self.seek = short_side, seek
        self.cache = None if cache is None else ShortSideCache(cache, short_side)

    def count(self, source: ClipSource) -> int:
        """How many frames can be read. UserError as for reading."""
        if source.template is not None:
            return source.count if source.count is not None else self._images(source)
        if self.cache is not None:
            return len(self.cache.get(source))
        return layout(source.path, _mtime(source.path))[0]

    @staticmethod
    def _images(source: ClipSource) -> int:
        assert source.template is not None
        return sum(1 for _ in source.path.glob(f"*{Path(source.template).suffix}"))

    def read(self, source: ClipSource, index: Sequence[int]) -> np.ndarray:
        """The frames of these numbers, in this order; numbers may repeat."""
        if self.cache is not None:
            return self.cache.get(source)[list(index)]
        wanted = sorted(set(index))
        if source.template is not None:
            found = {i: _image(source, i) for i in wanted}
            same_size(found, source.path)
        else:
            found = _decoded(source.path, wanted, self.seek)
            same_size(found, source.path)
        frames = shrunk(np.stack([found[i] for i in wanted]), self.short_side)
        place = {number: i for i, number in enumerate(wanted)}
        return frames[[place[i] for i in index]]


def _mtime(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


def _image(source: ClipSource, number: int) -> np.ndarray:
    from PIL import Image

    assert source.template is not None
    path = source.path / source.template.format(source.first + number)
    try:
        with Image.open(path) as file:
            return np.asarray(file.convert("RGB"))
    except FileNotFoundError:
        raise UserError(f"'{source.path}' should hold {source.count} frames, and '{path.name}' is missing") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"the frame '{path}' is damaged ({error}); extract it again, or pass --skip_corrupt") from error
