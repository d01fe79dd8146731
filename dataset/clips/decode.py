"""Decode clips from video files, depth recordings and folders of images; for every video data set.

Shape letters: T frames of a clip, K segments (frames that a network reads), h w pixels of a decoded frame, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.packages import needed
from core.protocols import UserError
from dataset.images.files import LARGEST_PICTURE, PictureError, UnreadableError, picture, pillow

LARGEST_ARRAY = 2**30  # bytes of one recording; the largest published one takes 20 MB
MAT_BYTES = {"int8": 1, "uint8": 1, "logical": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "single": 4}


@dataclass(frozen=True)
class ClipSource:
    """The source of one clip's frames: a video file, a depth recording (.mat), or a folder of images.

    template: format of the image names, such as "{:06d}.jpg". first: number of the first image. count: number of
    images; None counts them.
    """

    path: Path
    template: str | None = None
    first: int = 1
    count: int | None = None

    def stamp(self) -> str:
        """A string that changes when the files change."""
        info = self.path.stat()
        return f"{self.path.resolve()} {info.st_size} {info.st_mtime_ns} {self.template} {self.first} {self.count}"


def open_video(path: Path) -> Any:
    """av.open that accepts any metadata. PyAV before 19 needs an argument for that, which PyAV 19 does not have."""
    import av

    settings: dict[str, Any] = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "ignore"}
    return av.open(str(path), **settings)


@cache
def _one_thread() -> dict[str, int]:
    """The argument that makes PyAV scale in one thread, if this version has it."""
    import av

    try:
        av.VideoFrame(2, 2, "gray").to_ndarray(format="rgb24", threads=1)
    except TypeError:
        return {}
    return {"threads": 1}


def pixels(frame: Any, **size: Any) -> np.ndarray:
    """uint8 [h, w, 3] of a decoded frame, rotated as the file demands (phones); size: arguments of PyAV's reformat().

    In one thread: PyAV 19 keeps its scaler, and a worker process forked later would wait for the scaler's threads.
    """
    array = frame.to_ndarray(format="rgb24", **size, **_one_thread())
    quarters = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(array, quarters)) if quarters else array


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """(container, video stream) of a video file. UserError if it is missing, empty or fails while it is read."""
    av = needed("av", "reading videos")
    require_content(path)
    try:
        with open_video(path) as container:
            stream = container.streams.video[0]
            require_size(path, stream.width, stream.height)
            stream.thread_type = "NONE"  # parallelism comes from decoding several files
            yield container, stream
    except UserError:
        raise
    except (av.FFmpegError, IndexError, OSError, ValueError) as error:
        raise broken(path, error) from error


def require_content(path: Path) -> None:
    if not path.is_file():
        raise UnreadableError(f"there is no video '{path}'")
    if not path.stat().st_size:
        raise UnreadableError(
            f"the video '{path}' is empty (0 bytes); fetch it again, or pass --skip_corrupt to leave it out"
        )


def require_size(path: Path, width: int, height: int) -> None:
    """UserError for frames larger than those of any video, whose decoding would take gigabytes."""
    if width * height > LARGEST_PICTURE:
        raise UnreadableError(
            f"the video '{path}' has frames of {width}x{height} pixels, more than {LARGEST_PICTURE:,}: a decompression "
            "bomb or a damaged header; fetch it again, or pass --skip_corrupt to leave it out"
        )


def broken(path: Path, error: Exception | str) -> UnreadableError:
    reason = getattr(error, "strerror", None) or error
    return UnreadableError(
        f"the video '{path}' is truncated or not a video ({reason}); fetch it again, or pass --skip_corrupt to "
        "leave it out"
    )


def check_length(path: Path, count: int, promised: int) -> None:
    """UserError if there are fewer frames than the header says. A header may say one too many, or nothing (0)."""
    if not count:
        raise broken(path, "it holds no frames")
    if count < 0.9 * promised - 1:
        raise broken(path, f"{count} of {promised} frames can be decoded")


def check_sizes(frames: Iterable[np.ndarray], path: Path) -> None:
    if len({f.shape for f in frames}) > 1:
        raise UnreadableError(
            f"the frames of '{path}' are of different sizes; convert it again, or pass --skip_corrupt"
        )


def read_video(path: Path, short_side: int | None = None) -> np.ndarray:
    """All frames of a video file: uint8 [T, h, w, C], C = 1 for grey pictures.

    short_side: size of the shorter side, by area averaging while decoding; None keeps the size. UserError as in
    opened(), or if there are fewer frames than the header says.
    """
    frames = []
    with opened(path) as (container, stream):
        promised = stream.frames
        for frame in container.decode(stream):
            width, height = _scaled(frame.width, frame.height, short_side)
            frames.append(pixels(frame, width=width, height=height, interpolation="AREA"))
    check_length(path, len(frames), promised)
    check_sizes(frames, path)
    return without_colour(np.stack(frames))


def _scaled(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    if short_side is None:
        return width, height
    short = min(width, height)
    return max(1, round(width * short_side / short)), max(1, round(height * short_side / short))


def without_colour(frames: np.ndarray) -> np.ndarray:
    """[T, h, w, 3] -> [T, h, w, 1] if the three channels are equal."""
    grey = frames[..., :1]
    return np.ascontiguousarray(grey) if (frames == grey).all() else frames


def read_depth(path: Path, short_side: int | None = None, farthest: int = 4080) -> np.ndarray:
    """A Kinect recording (`d_depth` [H, W, T] in mm) as uint8 [T, h, w, 1]: 16 mm per level, up to `farthest`."""
    depth = read_mat(path, "d_depth")
    if depth.ndim != 3:
        raise UserError(f"'{path}': d_depth has the shape {list(depth.shape)}, expected [H, W, T]")
    grey = (np.clip(depth, 0, farthest) // 16).astype(np.uint8)
    clip = torch.from_numpy(np.ascontiguousarray(grey.transpose(2, 0, 1)))[:, None]  # [T, 1, H, W]
    if short_side is not None:
        from torchvision.transforms.v2 import functional as v2

        clip = v2.resize(clip, [short_side], antialias=True)
    return np.ascontiguousarray(clip.permute(0, 2, 3, 1).numpy())


def read_mat(path: Path, key: str) -> np.ndarray:
    """One array of a MATLAB file; a UserError names the file if that fails."""
    import scipy.io

    try:
        declared = {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(path)}  # reads only the headers
        shape, kind = declared.get(key, ((), ""))
        size = math.prod(shape) * MAT_BYTES.get(kind, 8)
        if size > LARGEST_ARRAY:
            raise UnreadableError(
                f"'{path}' holds a {key} of the shape {list(shape)}, which takes {size / 2**30:.1f} GiB, more than any "
                "recording; fetch it again, or pass --skip_corrupt to leave it out"
            )
        content = scipy.io.loadmat(path, variable_names=[key])
    except UserError:
        raise
    except Exception as error:  # on a truncated file scipy raises almost any exception
        raise UnreadableError(
            f"'{path}' is truncated or not a MATLAB file ({type(error).__name__}: {error}); fetch it again, or pass "
            "--skip_corrupt to leave it out"
        ) from error
    if key not in content:
        raise UserError(f"'{path}' has no {key}: is it a file of another kind?")
    return content[key]


def count_images(source: ClipSource) -> int:
    """Number of images in a folder, if its list does not give it."""
    assert source.template is not None
    return source.count or sum(1 for _ in source.path.glob(f"*{Path(source.template).suffix}"))


def read_image(source: ClipSource, number: int, short_side: int | None = None) -> np.ndarray:
    """Frame `number` (0-based) of a folder of images: uint8 [h, w, 3]. UserError: missing or damaged."""
    assert source.template is not None
    path = source.path / source.template.format(source.first + number)
    if not path.exists():
        raise UnreadableError(
            f"'{source.path}' should hold {count_images(source)} frames, but '{path.name}' is missing: extract the "
            "frames again"
        )
    try:
        image = picture(path)
    except PictureError as error:
        raise UnreadableError(f"{error}: extract the frame again, or pass --skip_corrupt") from error
    size = _scaled(image.width, image.height, short_side)
    return np.asarray(image if image.size == size else image.resize(size, pillow().Resampling.BOX))


def read_folder(source: ClipSource, short_side: int | None = None) -> np.ndarray:
    """A folder of numbered images as uint8 [T, h, w, C]. UserError if an image is missing, damaged or of another
    size."""
    frames = [read_image(source, number, short_side) for number in range(count_images(source))]
    if not frames:
        raise UnreadableError(
            f"'{source.path}' holds no frames: extract them again, or pass --skip_corrupt to leave it out"
        )
    check_sizes(frames, source.path)
    return without_colour(np.stack(frames))


def read_clip(source: ClipSource, short_side: int | None = None) -> np.ndarray:
    """All frames of any source: uint8 [T, h, w, C]."""
    if source.template is not None:
        return read_folder(source, short_side)
    return (read_depth if source.path.suffix == ".mat" else read_video)(source.path, short_side)
