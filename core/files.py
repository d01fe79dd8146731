"""Writing files so that an interrupted or failed write leaves the old content."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import torch

from core.protocols import UserError

ROOT = Path(__file__).resolve().parent.parent  # of the repository


def atomic_save(obj: Any, path: str | Path) -> None:
    """torch.save, all or nothing: whatever happens, `path` holds the old content or the new. UserError if it cannot."""
    buffer = io.BytesIO()
    torch.save(obj, buffer)
    _replace(Path(path), buffer.getbuffer())


def atomic_write(content: bytes, path: str | Path) -> None:
    """Write bytes, all or nothing, as atomic_save does."""
    _replace(Path(path), content)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, all or nothing, as atomic_save does."""
    _replace(Path(path), text.encode())


def atomic_write_json(obj: Any, path: str | Path) -> None:
    """Write indented JSON, all or nothing. What JSON does not know becomes its str()."""
    atomic_write_text(path, json.dumps(obj, indent=4, default=str))


def make_folder(path: Path, what: str = "folder") -> None:
    """With what is above it; UserError where it cannot be. what: as messages call it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the {what} {path}: {error.strerror or error}") from error


def _replace(path: Path, content: bytes | memoryview) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
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


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # absent or damaged: nothing is remembered
        return {}
