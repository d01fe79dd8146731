"""The teacher cache: logits, and optionally pooled features, of every pixel view of every training image.

Crop-and-flip data has few views (162 at 32 pixels), so after enough epochs all have occurred. The runs that use the
cache fill it, view by view, and every later student, method and seed reads it.
Shape letters: N samples, Q views per sample, K classes, D width of a tap, B batch.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.files import make_folder, read_json, refuse_folder, remember, row_checksums
from core.log import log, progress
from core.machine import free
from core.option import Around, Config, option
from core.protocols import Batch, DataSet, Features, FullSet, TeacherSource, UserError

CACHEABLE = ("logits", "pooled")  # taps of one vector per view; maps are hundreds of times larger


@dataclass(frozen=True)
class CacheConfig(Config):
    heading = "teacher cache"

    teacher_cache: str | None = option(
        None, "folder that stores the teacher's logits of every view, for this and later runs", metavar="FOLDER"
    )
    cache_pooled: bool = option(False, "also store the teacher's pooled features, for methods that read no maps")
    cache_device: str = option(
        "auto",
        "read the cache from disk (mapped into memory) or from the GPU; auto: the GPU if it fits in half of its free "
        "memory",
        choices=("auto", "disk", "gpu"),
    )
    rebuild_cache: bool = option(False, "replace the content of --teacher_cache")

    def __bool__(self) -> bool:
        return self.teacher_cache is not None

    @property
    def folder(self) -> Path:
        assert self.teacher_cache is not None
        return Path(self.teacher_cache)

    def idle(self, around: Around) -> dict[str, str]:
        if around.alone:
            return self.every_flag(f"--distill {around.distill} uses no teacher")
        if not self:
            return dict.fromkeys(("cache_pooled", "cache_device", "rebuild_cache"), "there is no --teacher_cache")
        return {"cache_device": "the cache is mapped into memory"} if around.on_cpu else {}


def refuse_unusable(cfg: CacheConfig, several: bool, dropout: bool, mixes: bool) -> None:
    """UserError if the folder cannot be made, or if a view has no single output of the teacher: with several teachers,
    its dropout, or mixed images."""
    refuse_folder(cfg.folder, "teacher cache")
    if several:
        raise UserError(
            "--teacher_cache stores one teacher's features, but --path_t names several: leave one of them out"
        )
    if dropout:
        raise UserError(
            "--teacher_dropout draws new values for every batch, which --teacher_cache cannot store: leave one of "
            "them out"
        )
    if mixes:
        raise UserError(
            "--mixup, --cutmix and --augment make new images of every batch, which --teacher_cache cannot store: pass "
            "--mixup 0 --cutmix 0 --augment none, or leave the cache out"
        )


def taps_outside_cache(cfg: CacheConfig, taps: Sequence[str], headless: bool) -> list[str]:
    """The taps that a cache does not keep, so that the teacher runs for them; the log names them."""
    kept = ("pooled",) if headless else ("logits", "pooled") if cfg.cache_pooled else ("logits",)
    deeper = [tap for tap in taps if tap not in kept]
    if deeper:
        hint = " (--cache_pooled stores it)" if deeper == ["pooled"] else ""
        words = (" and ".join(kept), ", ".join(deeper), hint)
        log.info("--teacher_cache stores %s, but these methods read %s, so the teacher runs%s", *words)
    return deeper


def cache_layout(
    source: TeacherSource, data: DataSet, device: torch.device, taps: Sequence[str]
) -> tuple[FullSet, CacheLayout]:
    """The complete training set, and the layout of a cache for it: widths and types of the teacher's logits and taps;
    for a teacher without a classifier, 0 classes and taps in half precision."""
    if data.num_crops is None:
        raise UserError(f"--teacher_cache needs data with crop-and-flip views, but {data.name} has none: leave it out")
    whole = data.full or FullSet(data.checksum, len(data.train_labels), None)
    return whole, CacheLayout(whole.count, data.num_crops, *feature_widths(source, data, device, taps), whole.positions)


def feature_widths(
    source: TeacherSource, data: DataSet, device: torch.device, taps: Sequence[str]
) -> tuple[int, torch.dtype, tuple[int, torch.dtype] | None]:
    """(K, dtype) of the logits and (D, dtype) of the pooled feature, found by a batch of noise."""
    spec = source.spec
    none = torch.zeros(2, dtype=torch.int64, device=device)
    noise = torch.rand(2, *data.shapes[spec.input], generator=torch.Generator().manual_seed(0))
    images = noise.to(device, memory_format=torch.channels_last) if noise.ndim == 4 else noise.to(device)
    features = source.features(Batch({spec.input: images}, none, none), taps)
    if any(v.ndim != 2 for v in features.values()):
        raise UserError(f"--cache_pooled: the pooled feature of {spec.name} is not a vector: leave the flag out")
    half, pooled = torch.float16, features.get("pooled")
    if spec.headless:
        assert pooled is not None, "a method without logits and without taps"
        return 0, half, (pooled.shape[1], half)
    logits = features["logits"]
    return logits.shape[1], logits.dtype, None if pooled is None else (pooled.shape[1], pooled.dtype)


def cache_key(
    teacher: str, data: str, spec: Any, autocast: torch.dtype | None, folded: bool = False, network: str = ""
) -> dict[str, Any]:
    """The key of a cache: checksums of teacher and data, normalisation, precision of the forward pass, whether batch
    norm was folded into the convolutions, and the network that the teacher's file was read as (some share their
    keys)."""
    return {
        "teacher": teacher,
        "network": network,
        "data": data,
        "normalisation": [list(spec.mean or ()), list(spec.std or ())],
        "precision": str(autocast or torch.float32).removeprefix("torch."),
        "folded": folded,
    }


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside the context, other processes that open the same cache wait, if folders can be locked."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _moved(rows: Tensor, device: torch.device, part: int = 1 << 16) -> Tensor:
    """rows.to(device) in parts, with a progress bar, as a large file takes a while."""
    out = torch.empty_like(rows, device=device)
    for there, here in zip(out.split(part), progress(rows.split(part), "reading the teacher cache"), strict=True):
        there.copy_(here)
    return out


class Store:
    """One tap of every view, in two files: NAME.bin holds [N * Q, D], NAME_sums.bin a CRC-32 per row, 0 for none.

    The checksum is written after the row and compared at every read: rows that a crash cut off, or that have changed,
    count as missing. Both files are mapped into memory, so several runs may read and fill them.
    """

    def __init__(self, folder: Path, name: str, rows: int, width: int, dtype: torch.dtype):
        self.folder, self.rows, self.width, self.dtype = folder, rows, width, dtype
        self.data_file, self.sums_file = f"{name}.bin", f"{name}_sums.bin"
        # of older versions: a byte per row, 1 if the row is present
        self.marks_file = "filled.bin" if name == "logits" else f"{name}_filled.bin"
        self.reported = False

    @property
    def bytes(self) -> int:
        """Of the rows alone."""
        return self.rows * self.width * self.dtype.itemsize

    def missing_bytes(self) -> int:
        """Disk space that the files will still need; they are sparse, so their size does not show it."""
        return self.bytes + 4 * self.rows - self._taken(self.data_file) - self._taken(self.sums_file)

    def open(self, device: torch.device, resident: bool) -> None:
        """resident: keep all rows on the device; otherwise an accelerator reads them through the host."""
        before = {name: self._size(name) for name in (self.data_file, self.sums_file)}
        for name, size in ((self.data_file, self.bytes), (self.sums_file, 4 * self.rows)):
            with open(self.folder / name, "ab") as file:
                file.truncate(size)
        self.on_disk = self._map(self.data_file, self.rows * self.width, self.dtype).view(self.rows, self.width)
        self.sums = self._map(self.sums_file, self.rows, torch.int32).numpy().view(np.uint32)
        if (self.folder / self.marks_file).exists():
            self._add_sums(before[self.data_file])
        elif any(before.values()) and before != {self.data_file: self.bytes, self.sums_file: 4 * self.rows}:
            self._report("is cut off or missing")
        self.device, self.direct = device, device.type == "cpu"
        self.resident = not self.direct and resident
        if self.resident:
            filled = np.flatnonzero(self.sums)
            for part in np.array_split(filled, max(1, len(filled) // 4096)):
                self._gather(torch.from_numpy(part))
            self.rows_here, self.filled = _moved(self.on_disk, device), self.sums != 0
        self.unsaved: list[tuple[Tensor, Tensor]] = []

    def known(self, view_id: Tensor) -> np.ndarray:
        """bool [B]: which rows are present and undamaged. On the host, they are read now, for read()."""
        if self.resident:
            return self.filled[view_id.numpy()]
        self.gathered, known = self._gather(view_id)
        return known

    def read(self, rows: Tensor) -> Tensor:
        """[B, D] on the device, of the rows given to known(); missing rows have arbitrary values.

        rows: the same numbers on the device."""
        if self.resident:
            return self.rows_here[rows]
        return self.gathered if self.direct else self.gathered.pin_memory().to(self.device, non_blocking=True)

    def write(self, view_id: Tensor, rows: Tensor, values: Tensor) -> None:
        if self.resident:
            self.rows_here[rows] = values
            self.filled[view_id.numpy()] = True
        self.unsaved.append((view_id, values))
        if self.direct:
            self.flush()

    def flush(self) -> None:
        if not self.unsaved:
            return
        view_ids, values = (torch.cat(parts) for parts in zip(*self.unsaved, strict=True))
        places, values = view_ids.numpy(), values.cpu()
        self.on_disk[view_ids] = values
        self.sums[places] = row_checksums(_raw(values), places.tolist())
        self.unsaved.clear()

    def _gather(self, view_id: Tensor) -> tuple[Tensor, np.ndarray]:
        """Rows of the file and which of them are valid; damaged ones are reported once and removed."""
        rows, places = self.on_disk[view_id], view_id.numpy()
        sums = self.sums[places]
        known = sums == row_checksums(_raw(rows), places.tolist())
        if (damaged := (sums != 0) & ~known).any():
            self.sums[places[damaged]] = 0
            self._report("does not match its checksums")
        return rows, known

    def _report(self, what: str) -> None:
        if not self.reported:
            log.info("%s %s: these rows are computed again", self.folder / self.data_file, what)
        self.reported = True

    def _add_sums(self, reached: int) -> None:
        """Checksums for the rows of an older version's cache. reached: bytes of the data file."""
        marks = np.fromfile(self.folder / self.marks_file, np.uint8)[: reached // (self.width * self.dtype.itemsize)]
        filled = np.flatnonzero(marks[: self.rows])
        log.info(
            "%s has no checksums (written by an older version): its %d rows are used and get checksums now",
            self.folder / self.data_file,
            len(filled),
        )
        for part in np.array_split(filled, max(1, len(filled) // 4096)):
            self.sums[part] = row_checksums(_raw(self.on_disk[torch.from_numpy(part)]), part.tolist())
        (self.folder / self.marks_file).unlink()

    def _size(self, name: str) -> int:
        path = self.folder / name
        return path.stat().st_size if path.exists() else 0

    def _taken(self, name: str) -> int:
        """Bytes on disk, if the system reports them."""
        path = self.folder / name
        if not path.exists():
            return 0
        size, blocks = path.stat().st_size, getattr(path.stat(), "st_blocks", None)
        return size if blocks is None else min(size, 512 * blocks)

    def _map(self, name: str, count: int, dtype: torch.dtype) -> Tensor:
        return torch.from_file(str(self.folder / name), shared=True, size=count, dtype=dtype)


def _raw(rows: Tensor) -> np.ndarray:
    """uint8 [B, bytes of a row]"""
    return rows.contiguous().view(torch.uint8).numpy()


def as_float32(values: Tensor) -> Tensor:
    """Rows that were stored in half precision, converted to float32 for methods; other rows unchanged."""
    return values.float() if values.dtype == torch.float16 else values


@dataclass(frozen=True)
class CacheLayout:
    """samples, views: their numbers in the data set. classes, dtype: of the logits; 0 classes: a teacher without
    logits.
    pooled: (D, dtype) of the pooled feature, if stored; it may be added to a cache of logits later. positions: of a
    run's samples in the data set, if it trains on a part."""

    samples: int
    views: int
    classes: int
    dtype: torch.dtype
    pooled: tuple[int, torch.dtype] | None = None
    positions: Tensor | None = None


class CachedTeacher(TeacherSource):
    """Reads the teacher's features from disk, and runs the live teacher for missing views.

    key: from cache_key(); stored in key.json, with shape and dtype. Rows have the dtype of the teacher's output, so
    nothing is lost; pooled features of a teacher without a classifier are float16, even in their first batch.

    The live teacher runs for a batch whose pixels were changed by more than crop and flip (crop is None), and for a
    method that reads taps that are not stored. UserError for a cache of another teacher, data set or precision, or
    without disk space.
    """

    def __init__(
        self,
        live: TeacherSource,
        cfg: CacheConfig,
        key: Mapping[str, Any],
        layout: CacheLayout,
        device: torch.device,
        rebuild: bool = False,
    ):
        self.live, self.spec, self.folder = live, live.spec, cfg.folder
        self.num_views = layout.views
        self.positions = None if layout.positions is None else layout.positions.to(device)
        self.key = {
            **key,
            "dtype": str(layout.dtype).removeprefix("torch."),
            "shape": [layout.samples, layout.views, layout.classes],
        }
        self.in_quarters = device.type != "cpu"
        self.hits = self.asked = 0
        kept = {"logits": (layout.classes, layout.dtype)} if layout.classes else {}
        kept |= {} if layout.pooled is None else {"pooled": layout.pooled}
        self.stores = {k: Store(self.folder, k, layout.samples * layout.views, *v) for k, v in kept.items()}
        make_folder(self.folder, "teacher cache")
        with locked(self.folder):
            self._open_folder(rebuild)
            resident = device.type != "cpu" and self._resident(device, cfg.cache_device)
            for store in self.stores.values():
                store.open(device, resident)

    def _open_folder(self, rebuild: bool) -> None:
        record = self.folder / "key.json"
        if rebuild and record.exists():
            files = (Store(self.folder, name, 0, 0, torch.uint8) for name in CACHEABLE)
            names = (n for s in files for n in (s.marks_file, s.sums_file, s.data_file))
            for name in (*names, "key.json"):
                (self.folder / name).unlink(missing_ok=True)
        if not record.exists():
            # leftovers of a process that was killed while writing the key do not count
            if not all(path.name.startswith(f".{record.name}.") for path in self.folder.iterdir()):
                raise UserError(
                    f"{self.folder} is not empty and not a teacher cache: give --teacher_cache an empty folder"
                )
            self._check_room(new=True)
            remember(self.key, record)
            return
        found = read_json(record, {}, "pass --rebuild_cache to start the cache from scratch")
        # settings that an older cache does not record were off, or are assumed equal
        found = {"folded": False, "network": self.key.get("network"), "dtype": self.key["dtype"]} | found
        different = [k for k in self.key if found.get(k) != json.loads(json.dumps(self.key[k]))]
        if different:
            changes = "; ".join(f"{k}: {found.get(k)} in the cache, {self.key[k]} in this run" for k in different)
            raise UserError(
                f"{self.folder} caches another teacher or other data ({changes}): give another folder, or pass "
                "--rebuild_cache to replace it"
            )
        self._check_room(new=False)

    def _check_room(self, new: bool) -> None:
        """The files are sparse: check that there is disk space for their full size."""
        needed = sum(store.missing_bytes() for store in self.stores.values())
        left = shutil.disk_usage(self.folder).free
        if needed > left:
            if new:
                self.folder.rmdir()
            raise UserError(
                f"the teacher cache {self.folder} needs {needed} bytes, {left} are free: give another folder"
            )

    def _resident(self, device: torch.device, where: str) -> bool:
        needed, left = sum(store.bytes for store in self.stores.values()), free(device)
        if where == "gpu" and needed > left:
            raise UserError(
                f"--cache_device gpu needs {needed} bytes on {device}, {left} are free: pass --cache_device disk"
            )
        return where == "gpu" or (where == "auto" and 2 * needed <= left)

    def features(self, batch: Batch, taps: Sequence[str]) -> Features:
        self.asked += len(batch)
        if batch.view_id is None or batch.crop is None or not set(taps) <= self.stores.keys():
            return self.live.features(batch, taps)
        view_id = batch.view_id
        wanted = {name: self.stores[name] for name in self.spec.outputs(taps)}
        known = np.logical_and.reduce([store.known(view_id) for store in wanted.values()])
        missing = np.flatnonzero(~known)
        self.hits += len(batch) - len(missing)
        if self.in_quarters:
            # an accelerator tunes its kernels for every batch size: use only four sizes
            more = -len(missing) % -(-len(batch) // 4)
            missing = np.sort(np.concatenate([missing, np.flatnonzero(known)[:more]]))
        index = batch.index if self.positions is None else self.positions[batch.index]
        rows = index * self.num_views + batch.crop
        if not len(missing):
            return {name: as_float32(store.read(rows)) for name, store in wanted.items()}
        return self._fill(batch, rows, torch.from_numpy(missing), wanted)

    def _fill(self, batch: Batch, rows: Tensor, missing: Tensor, wanted: Mapping[str, Store]) -> Features:
        """Run the teacher on the views at the positions `missing` [M], store its output, and join all rows."""
        assert batch.view_id is not None
        whole, view_id = len(missing) == len(batch), batch.view_id
        out = {} if whole else {name: as_float32(store.read(rows)) for name, store in wanted.items()}
        if not whole:
            positions = (missing.pin_memory() if rows.is_cuda else missing).to(rows.device, non_blocking=True)
            inputs = batch.inputs if batch.teacher_inputs is None else batch.teacher_inputs
            chosen = {k: x[positions] for k, x in inputs.items()}
            view_id = view_id[missing]
            batch = Batch(chosen, batch.target[positions], batch.index[positions], view_id=view_id)
            rows = rows[positions]
        answer = self.live.features(batch, [name for name in wanted if name != "logits"])
        for name, store in wanted.items():
            values = answer[name].detach().to(store.dtype)
            store.write(view_id, rows, values)
            if whole:
                out[name] = as_float32(values)
            else:
                out[name][positions] = as_float32(values)
        return out

    def end_epoch(self) -> dict[str, float]:
        """Write rows that were filled on an accelerator to disk. Returns the share of samples that the cache answered
        since the start, for the epoch's row."""
        for store in self.stores.values():
            store.flush()
        return {"cache_hit_rate": self.hits / max(self.asked, 1)}
