"""Decoded frames on disk, mapped into memory."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from core.files import row_checksums
from core.log import log, progress
from core.machine import usable_cores
from core.protocols import UserError
from dataset.clips.decode import ClipSource, read_clip
from dataset.images.files import UnreadableError

CACHE_VERSION = 2  # 2: videos are rotated as their file demands
OPEN_CLIPS = 256  # memory maps held open


class FrameCache:
    """Decoded frames on disk, one uint8 array [T, h, w, C] per clip, read through memory maps.

    A clip is decoded when it is first read. The file's name encodes the clip, its size and the state of its source, so
    that a changed video is decoded again. A checksum of every frame follows the array and is compared at every read; a
    damaged clip is decoded again. folder: None keeps the clips in memory. read: decodes a whole clip. prefix: of file
    names. flag: the one that sets the folder.
    """

    def __init__(
        self,
        folder: Path | None,
        short_side: int,
        read: Callable[[ClipSource], np.ndarray] | None = None,
        prefix: str = "",
        flag: str = "--clip_cache",
    ):
        self.folder, self.short_side, self.prefix, self.flag = folder, short_side, prefix, flag
        self.read = read or partial(read_clip, short_side=short_side)
        self._open: OrderedDict[ClipSource, np.ndarray] = OrderedDict()
        self.reported = False

    def path(self, source: ClipSource) -> Path | None:
        if self.folder is None:
            return None
        stamp = f"{CACHE_VERSION} {self.short_side} {source.stamp()}"
        digest = hashlib.blake2b(stamp.encode(errors="surrogateescape"), digest_size=8).hexdigest()
        return self.folder / f"{self.prefix}{source.path.stem[:60]}_{self.short_side}_{digest}.npy"

    def get(self, source: ClipSource) -> np.ndarray:
        """uint8 [T, h, w, C]; read only."""
        clip = self._open.get(source)
        if clip is None:
            clip = self._open[source] = self._load(source)
            while self.folder is not None and len(self._open) > OPEN_CLIPS:
                self._open.popitem(last=False)
        return clip

    def frames(self, source: ClipSource, index: Sequence[int]) -> np.ndarray:
        """uint8 [len(index), h, w, C]: copies of these decoded frames."""
        clip, index = self.get(source), list(index)
        picked = clip[index]
        if self.folder is None or self._sound(clip, picked, index):
            return picked
        path = self.path(source)
        assert path is not None
        path.unlink(missing_ok=True)
        self._open.pop(source, None)  # another thread may have met the same damage
        return self.get(source)[index]

    def _sound(self, clip: np.ndarray, picked: np.ndarray, index: Sequence[int]) -> bool:
        """Whether these frames match their checksums."""
        assert isinstance(clip, np.memmap)
        sums = np.fromfile(str(clip.filename), np.uint32, offset=clip.offset + clip.nbytes)
        start = _start(clip)
        if len(sums) == len(clip) and np.array_equal(sums[index], row_checksums(picked, (start + i for i in index))):
            return True
        self._report(clip.filename, "does not match its checksums")
        return False

    def _report(self, path: object, what: str) -> None:
        if not self.reported:
            log.info("%s %s: such clips are decoded again", path, what)
        self.reported = True

    def _mapped(self, path: Path) -> np.memmap | None:
        """The array in a file; None if it is missing or incomplete."""
        try:
            clip = np.load(path, mmap_mode="r")
        except FileNotFoundError:
            return None
        except Exception:  # a damaged header raises almost any exception
            clip = None
        if isinstance(clip, np.memmap) and path.stat().st_size == clip.offset + clip.nbytes + 4 * len(clip):
            return clip
        self._report(path, "is damaged or has no checksums (written by an older version)")
        return None

    def _load(self, source: ClipSource) -> np.ndarray:
        try:
            path = self.path(source)
        except OSError as error:
            raise UnreadableError(f"cannot read the clip '{source.path}': {error.strerror}") from error
        if path is None:
            return self.read(source)
        if (mapped := self._mapped(path)) is not None:
            return mapped
        self._write(path, self.read(source))
        return np.load(path, mmap_mode="r")

    def _write(self, path: Path, clip: np.ndarray) -> None:
        part = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
                part = file.name
                np.save(file, clip)
                row_checksums(clip, (_start(clip) + i for i in range(len(clip)))).tofile(file)
            os.replace(part, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(part)  # a full disk would stay full
            raise UserError(
                f"cannot write decoded frames to '{path.parent}' ({error.strerror}); point {self.flag} at a folder "
                "with room for them"
            ) from error

    def fill(self, sources: Iterable[ClipSource], bad: dict[Path, str] | None = None, num_segments: int = 1) -> int:
        """Decode all missing clips, several at a time; returns the size of the clips in bytes.

        bad: gets the path of every clip that cannot be read or has too few frames, and why; None: the first such error
        is raised.
        """

        def size(source: ClipSource) -> int:
            try:
                clip = self._load(source) if self.folder is not None else self.get(source)
                if len(clip) < num_segments:
                    raise UserError(
                        f"'{source.path}': {len(clip)} frames are fewer than --num_segments {num_segments}; lower it, "
                        "or pass --skip_corrupt to leave such clips out"
                    )
                return clip.nbytes
            except UserError as error:
                if bad is None:
                    raise
                bad[source.path] = str(error)
                return 0

        pool = ThreadPoolExecutor(max_workers=usable_cores())
        try:
            clips = list(sources)
            sizes: Iterable[int] = pool.map(size, clips)
            return sum(progress(sizes, "decoding clips", len(clips)))
        finally:
            pool.shutdown(cancel_futures=True)


def _start(clip: np.ndarray) -> int:
    """The first position of a clip's frames: another shape, as from a damaged header, gives other checksums."""
    return zlib.crc32(repr((clip.shape, clip.dtype.str)).encode())
