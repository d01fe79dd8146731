"""A teacher paid for once: its logits for every pixel view of every training image, on disk.

Crop-and-flip data has few views (162 at 32 pixels), so after enough epochs every view has been seen. The cache is
filled by the runs that use it, one view at a time, and serves every later student, method and seed.
Shape letters: N samples, Q views per sample, K classes, B batch.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from helper.checkpoint import atomic_write_json
from helper.protocols import Batch, Features, TeacherSource, UserError


def cache_key(teacher: str, data: str, spec: Any, autocast: torch.dtype | None) -> dict[str, Any]:
    """What makes two caches the same: checksums of teacher and data, normalisation, precision of the forward."""
    return {
        "teacher": teacher,
        "data": data,
        "normalisation": [list(spec.mean or ()), list(spec.std or ())],
        "precision": str(autocast or torch.float32).removeprefix("torch."),
    }


class CachedTeacher:
    """Answers for the teacher from disk where it can, and runs the live one for the views not seen yet.

    key: as cache_key(); kept in key.json. The file logits.bin holds [N, Q, K] in the dtype the teacher computed in, so
    nothing is lost; filled.bin holds [N, Q] bytes, 1 where a row is valid, written after the row. Both are mapped into
    memory, so several runs may read and fill one cache.

    A batch whose pixels were changed in another way than crop and flip (crop is None), or a method that reads more than
    logits, goes to the live teacher. Raises UserError: a cache of another teacher, data set or precision; no room.
    """

    def __init__(
        self,
        live: TeacherSource,
        folder: str | Path,
        key: Mapping[str, Any],
        num_samples: int,
        num_views: int,
        num_classes: int,
        dtype: torch.dtype,
        device: torch.device,
        rebuild: bool = False,
    ):
        self.live, self.spec, self.folder = live, live.spec, Path(folder)
        self.dtype = dtype
        self.shape = (num_samples, num_views, num_classes)
        self.key = {**key, "shape": list(self.shape)}
        self.hits = self.asked = 0
        self._open_folder(rebuild)
        rows = num_samples * num_views
        # rows are valid only where both files agree: what a crash cut off is computed again
        intact = min(self._size("logits.bin") // (num_classes * dtype.itemsize), self._size("filled.bin"))
        for name, size in (("logits.bin", rows * num_classes * dtype.itemsize), ("filled.bin", rows)):
            self._extend(name, size)
        self.on_disk = self._map("logits.bin", rows * num_classes, dtype).view(rows, num_classes)
        self.valid = self._map("filled.bin", rows, torch.uint8)
        if intact < rows:
            self.valid[intact:] = 0
        # on an accelerator the logits live there; the host only looks up which rows are filled
        self.store = self.on_disk if device.type == "cpu" else self.on_disk.to(device)
        self.filled = self.valid if device.type == "cpu" else self.valid.clone()
        self.unsaved: list[Tensor] = []

    def _open_folder(self, rebuild: bool) -> None:
        record = self.folder / "key.json"
        if rebuild and record.exists():
            for name in ("key.json", "filled.bin", "logits.bin"):
                (self.folder / name).unlink(missing_ok=True)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot create the teacher cache {self.folder}: {error.strerror}") from error
        if not record.exists():
            if any(self.folder.iterdir()):
                raise UserError(
                    f"{self.folder} is not empty and no teacher cache: give --teacher_cache a folder of its own"
                )
            self._check_room()
            atomic_write_json(self.key, record)
            return
        try:
            found = json.loads(record.read_text())
        except ValueError as error:
            raise UserError(f"{record} is damaged: pass --rebuild_cache to start the cache anew") from error
        different = [k for k in self.key if found.get(k) != json.loads(json.dumps(self.key[k]))]
        if different:
            changes = "; ".join(f"{k}: {found.get(k)} there, {self.key[k]} here" for k in different)
            raise UserError(
                f"{self.folder} caches another teacher's view of the data ({changes}): name another folder, or pass "
                "--rebuild_cache to replace it"
            )

    def _check_room(self) -> None:
        needed = math.prod(self.shape) * self.dtype.itemsize + math.prod(self.shape[:2])
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            self.folder.rmdir()
            raise UserError(
                f"the teacher cache {self.folder} needs {needed} bytes, {free} are free: name another folder"
            )

    def _size(self, name: str) -> int:
        path = self.folder / name
        return path.stat().st_size if path.exists() else 0

    def _extend(self, name: str, size: int) -> None:
        with open(self.folder / name, "ab") as file:
            file.truncate(size)

    def _map(self, name: str, count: int, dtype: torch.dtype) -> Tensor:
        return torch.from_file(str(self.folder / name), shared=True, size=count, dtype=dtype)

    def features(self, batch: Batch, taps: Sequence[str]) -> Features:
        if taps or batch.view_id is None or batch.crop is None:
            return self.live.features(batch, taps)
        missing = np.flatnonzero(self.filled[batch.view_id].numpy() == 0)
        self.asked += len(batch)
        self.hits += len(batch) - len(missing)
        rows = batch.index * self.shape[1] + batch.crop
        if len(missing):
            self._fill(batch, rows, torch.from_numpy(missing))
        return {"logits": self.store[rows]}

    def _fill(self, batch: Batch, rows: Tensor, missing: Tensor) -> None:
        if len(missing) < len(batch):
            positions = missing.to(rows.device)
            inputs = batch.inputs if batch.teacher_inputs is None else batch.teacher_inputs
            chosen = {k: x[positions] for k, x in inputs.items()}
            batch, rows = (
                Batch(chosen, batch.target[positions], batch.index[positions], view_id=batch.view_id[missing]),
                rows[positions],
            )
        self.store[rows] = self.live.features(batch, ())["logits"].detach().to(self.store.dtype)
        self.filled[batch.view_id] = 1
        if self.store is not self.on_disk:
            self.unsaved.append(batch.view_id)

    def flush(self) -> None:
        """Bring rows that were filled on the accelerator to disk; once an epoch."""
        if self.unsaved:
            rows = torch.cat(self.unsaved)
            self.on_disk[rows] = self.store[rows.to(self.store.device)].cpu()
            self.valid[rows] = 1
            self.unsaved.clear()

    def end_epoch(self) -> dict[str, float]:
        """Flush; the share of samples answered from the cache since the start goes into metrics.jsonl."""
        self.flush()
        return {"cache_hit_rate": self.hits / max(self.asked, 1)}
