"""Recordings of body-worn sensors: the columns of a file for each modality, and windows of one length.

Shape letters: C axes, T samples of a recording, L samples of a window.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core.protocols import UserError
from dataset.clips.decode import read_mat

# the columns of an inertial unit that a modality reads, in the order x, y, z: g, then degrees a second
MODALITIES = {"accel": slice(0, 3), "gyro": slice(3, 6), "inertial": slice(0, 6)}

SHORTEST = 8  # samples


def read_sensor(path: Path, modality: str = "accel") -> np.ndarray:
    """float64 [C, T] of one file: `.mat` of UTD-MHAD (d_iner [T, 6]), `.txt` of Berkeley-MHAD (ax ay az unix_time),
    `.csv` of MMAct (YYYYMMDD_HH:MM:SS.ffffff,x,y,z in the order of time, with or without a header).

    Values that are not finite are interpolated along their axis. UserError if the file is missing, damaged or too
    short, has another number of columns, or an axis without a finite value.
    """
    if not path.is_file():
        raise UserError(f"there is no sensor recording '{path}'")
    if path.suffix == ".mat":
        values = _read_inertial(path, modality)
    elif path.suffix == ".txt":
        values = _table(path, None)[:, :3].T
    elif path.suffix == ".csv":
        values = _table(path, ",")[:, 1:].T
    else:
        raise UserError(f"'{path}' is not a sensor recording: expected one of .mat, .txt, .csv")
    if values.shape[1] < SHORTEST:
        raise UserError(
            f"'{path}' holds {values.shape[1]} samples, fewer than {SHORTEST}; leave it out with --skip_corrupt"
        )
    return _without_gaps(values, path)


def _read_inertial(path: Path, modality: str) -> np.ndarray:
    values = read_mat(path, "d_iner")
    if values.ndim != 2 or values.shape[1] != 6:
        raise UserError(
            f"'{path}': d_iner has the shape {list(values.shape)}, expected [T, 6] (acceleration x y z, then angular "
            "rate x y z)"
        )
    if modality not in MODALITIES:
        raise UserError(f"an inertial recording has no modality '{modality}': choose {', '.join(MODALITIES)}")
    return values[:, MODALITIES[modality]].T.astype(np.float64)


def _table(path: Path, separator: str | None) -> np.ndarray:
    """float64 [T, 4]; a timestamp becomes seconds."""
    rows = []
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' cannot be read as text ({error}); fetch it again") from error
    for number, line in enumerate(lines, 1):
        fields = line.split(separator)
        if not line.strip() or (number == 1 and fields[0].strip().lower() == "timestamp"):
            continue
        if len(fields) != 4:
            raise UserError(f"'{path}', line {number}: {len(fields)} columns, expected 4; fetch it again")
        try:
            rows.append([_seconds(fields[0]), *map(float, fields[1:])])
        except ValueError:
            raise UserError(f"'{path}', line {number}: '{line[:60]}' holds no numbers; fetch it again") from None
    if not rows:
        raise UserError(f"'{path}' is empty; fetch it again, or pass --skip_corrupt to leave it out")
    table = np.array(rows)
    return table if separator is None else table[table[:, 0].argsort(kind="stable")]


def _seconds(field: str) -> float:
    field = field.strip()
    return datetime.strptime(field, "%Y%m%d_%H:%M:%S.%f").timestamp() if "_" in field else float(field)


def _without_gaps(values: np.ndarray, path: Path) -> np.ndarray:
    finite = np.isfinite(values)
    if finite.all():
        return values
    place = np.arange(values.shape[1])
    for axis, (row, good) in enumerate(zip(values, finite, strict=True)):
        if not good.any():
            raise UserError(f"'{path}': axis {axis} holds no finite value; leave it out with --skip_corrupt")
        row[~good] = np.interp(place[~good], place[good], row[good])
    return values


def window(values: np.ndarray, length: int) -> Tensor:
    """A whole recording [C, T] as float32 [C, L]: linear interpolation; antialiased when it shrinks."""
    series = torch.from_numpy(np.ascontiguousarray(values)).float()[None, :, None]  # [1, C, 1, T]
    out = F.interpolate(series, (1, length), mode="bilinear", align_corners=False, antialias=True)
    return out[0, :, 0].contiguous()
