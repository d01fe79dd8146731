"""A lock on a run folder: only one process writes to it, and the lock names that process."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from core.protocols import UserError, explained

NAME = ".lock"  # the file in the folder; its lock counts, not its existence

_held: dict[Path, int] = {}  # lock file -> file descriptor


def hold(folder: Path) -> None:
    """Lock a folder for this process; if another process holds it, the UserError names that process.

    The lock is released when the process ends. On file systems without locks, the process number in the file decides,
    for processes of the same machine only.
    """
    path = folder.resolve() / NAME
    if path in _held:
        return
    _forget_in_forks()
    while True:
        handle = _open(path)
        if not _locked(handle):
            found = _holder(handle)
            holder = f" (process {found['process']} on {found.get('host')})" if found else ""
            os.close(handle)
            raise UserError(
                f"another process is training {folder}{holder}: wait for it or stop it, or choose another --trial"
            )
        if _is_there(handle, path):
            break
        os.close(handle)  # the previous process has just freed and deleted it
    os.ftruncate(handle, 0)
    os.write(handle, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode())
    _held[path] = handle


def release() -> None:
    """Free all folders that this process holds."""
    for path, handle in _held.items():
        with contextlib.suppress(OSError):
            if _is_there(handle, path):
                path.unlink()
            os.close(handle)
    _held.clear()


def _open(path: Path) -> int:
    with explained(f"cannot lock {path}"):
        return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)


def _is_there(handle: int, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(handle), os.stat(path))
    return False


def _locked(handle: int) -> bool:
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # no such locks on this system, or not on this file system
        holder = _holder(handle)
        here = holder.get("host") == socket.gethostname()
        return not (here and holder["process"] != os.getpid() and psutil.pid_exists(holder["process"]))
    return True


def _holder(handle: int) -> dict[str, Any]:
    """What the lock's holder wrote; {} if that is unreadable."""
    try:
        found = json.loads(os.pread(handle, 1000, 0))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("process"), int) else {}


@cache
def _forget_in_forks() -> None:
    """A forked process, such as a loader's worker, must not hold the lock: the run may end before the worker does."""

    def forget() -> None:
        for handle in _held.values():
            with contextlib.suppress(OSError):
                os.close(handle)
        _held.clear()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forget)
