"""Atomic file writes: after an interrupted or failed write the file still has its old content."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tomllib
import zlib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.log import log
from core.packages import needed
from core.protocols import UserError, explained

ROOT = Path(__file__).resolve().parent.parent  # of the repository
SEAL = b"retort blake2b "  # in the comment that ends a zip file, before the digest of all bytes up to the digest
DIGEST = 16  # bytes


def atomic_save(obj: Any, path: str | Path, previous: Path | None = None) -> None:
    """torch.save, atomically: `path` holds either the old or the new content. Raises UserError if writing fails.

    The file ends with a checksum, which torch.load ignores and intact() compares. previous: the file that keeps the old
    content, unless that is damaged.
    """
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    buffer.seek(-2, os.SEEK_END)  # the length of the zip file's comment, which torch leaves empty
    buffer.write((len(SEAL) + DIGEST).to_bytes(2, "little") + SEAL)
    buffer.write(hashlib.blake2b(buffer.getbuffer(), digest_size=DIGEST).digest())
    atomic_write(buffer.getbuffer(), path, previous)


def intact(content: bytes) -> bool | None:
    """Whether a file of atomic_save still has the bytes that were written; None if it has no checksum."""
    end = len(content) - DIGEST
    if content[max(end - len(SEAL), 0) : end] != SEAL:
        return None
    return hashlib.blake2b(memoryview(content)[:end], digest_size=DIGEST).digest() == content[end:]


def row_checksums(rows: np.ndarray, places: Iterable[int]) -> np.ndarray:
    """uint32 [n], never 0: the CRC-32 of every row of [n, ...], computed from its content and its position."""
    flat = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
    sums = [zlib.crc32(row.data, place & 0xFFFFFFFF) or 1 for row, place in zip(flat, places, strict=True)]
    return np.array(sums, np.uint32)


def _keep(path: Path, previous: Path) -> None:
    """Copy the current content of `path` to `previous`, unless it is damaged."""
    if not path.is_file() or intact(path.read_bytes()) is False:
        return
    temporary = path.with_name(f".{previous.name}.{os.getpid()}.tmp")
    try:
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)
        temporary.replace(previous)
    finally:
        temporary.unlink(missing_ok=True)  # a rename between two links of one file does nothing


def atomic_write(content: bytes | memoryview, path: str | Path, previous: Path | None = None) -> None:
    """Write bytes atomically, as atomic_save does."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None:
            _keep(path, previous)
        temporary.replace(path)
    except OSError as error:
        kept = "its previous content is kept" if path.exists() else "nothing was written"
        raise UserError(f"cannot write {path}: {error.strerror or error}; {kept}") from error
    finally:
        with contextlib.suppress(OSError):  # gone already after the rename
            temporary.unlink()
    with contextlib.suppress(OSError):  # some file systems sync no folders; the file itself is complete either way
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically, as atomic_save does."""
    atomic_write(text.encode(), path)


def atomic_write_json(obj: Any, path: str | Path) -> None:
    """Write indented JSON atomically. Values that JSON cannot hold are written as str()."""
    atomic_write_text(path, json.dumps(obj, indent=4, default=str))


def make_folder(path: Path, what: str = "folder") -> None:
    """Make a folder and its parents; UserError if that fails. what: its name in messages."""
    with explained(f"cannot make the {what} {path}"):
        path.mkdir(parents=True, exist_ok=True)


def refuse_folder(path: Path, what: str = "folder") -> None:
    """UserError if make_folder() would fail; makes nothing."""
    with explained(f"cannot make the {what} {path}"):  # also a name too long, or a parent that cannot be searched
        place = next(p for p in (path, *path.absolute().parents) if p.exists())
        if not place.is_dir():
            raise NotADirectoryError(0, f"{place} is a file")
        if place != path and not os.access(place, os.W_OK):
            raise PermissionError(0, f"{place} cannot be written to")


def read_text(path: Path, what: str, encoding: str = "utf-8") -> str:
    """The text of a regular file. what: as messages call it."""
    with explained(f"cannot read the {what} '{path}'"):
        if path.exists() and not path.is_file() and not path.is_dir():  # reading a pipe or a device may never end
            raise UserError(f"the {what} '{path}' is a pipe, a socket or a device: name a regular file")
        return path.read_text(encoding)


def read_json(path: Path, shape: Mapping[str, type | tuple[type, ...]], way_out: str) -> dict[str, Any]:
    """Read a JSON object with the fields of `shape`, each of its type, and check its content against its checksum.

    Errors are UserErrors that end with way_out. A file without a checksum is read, which the log says once.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: {way_out}")
    with explained(f"cannot read {path}"):
        content = path.read_bytes()
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged (not JSON): {way_out}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged (it holds a {type(found).__name__}, not an object): {way_out}")
    for name, kind in shape.items():
        if not isinstance(found.get(name), kind):
            what = f"its {name} is a {type(found[name]).__name__}" if name in found else f"it has no {name}"
            raise UserError(f"{path} is damaged ({what}): {way_out}")
    if (checksum := found.pop("checksum", None)) is None:
        _say_unsealed()
    elif checksum != _checksum(found):
        raise UserError(f"{path} is damaged (its content does not match its checksum): {way_out}")
    return found


@cache
def _say_unsealed() -> None:
    log.warning("some files were written by an older version and have no checksum: damage in them is not detected")


def read_config(path: Path) -> dict[str, Any]:
    """Read the mapping in a TOML, JSON or YAML file. UserError if the file is of another kind or damaged."""
    kind = path.suffix.lower()
    if kind not in (".toml", ".json", ".yaml", ".yml"):
        raise UserError(f"{path} must be a file that ends in .toml, .json, .yaml or .yml")
    content = read_text(path, "file of settings")
    try:
        if kind == ".toml":
            found: Any = tomllib.loads(content)
        elif kind == ".json":
            found = json.loads(content)
        else:
            found = _yaml(content)
    except (ValueError, RecursionError) as error:
        what = " ".join(str(error).split())
        raise UserError(f"{path} is not a {kind[1:].upper()} file: {what}") from error
    if not isinstance(found, dict) or not all(isinstance(k, str) for k in found):
        raise UserError(f"{path} must hold settings such as epochs = 240, not a {type(found).__name__}")
    return found


def _yaml(content: str) -> Any:
    yaml = needed("yaml", "a YAML file", "pyyaml")
    try:
        return yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ValueError(error) from error


def _checksum(entries: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(entries, sort_keys=True).encode(), digest_size=DIGEST).hexdigest()


def remember(entries: Mapping[str, Any], path: Path) -> None:
    """Write a JSON object with a checksum, atomically; read_json() and remembered() read it."""
    plain = json.loads(json.dumps(entries, default=str))
    atomic_write_json({**plain, "checksum": _checksum(plain)}, path)


def remembered(path: Path, kind: type | tuple[type, ...] = object) -> dict[str, Any]:
    """Entries of a JSON object that have this type; {} if there is no file. A damaged file is logged and ignored."""
    if not path.exists():
        return {}
    try:
        found = read_json(path, {}, "what it remembers is not used")
    except UserError as error:
        log.info("%s", error)
        return {}
    return {k: v for k, v in found.items() if isinstance(v, kind)}
