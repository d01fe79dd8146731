"""Packages that only some parts of the toolbox need."""

from __future__ import annotations

import importlib
from typing import Any

from core.protocols import UserError


def needed(module: str, what: str = "this", package: str = "") -> Any:
    """A module of an optional package, imported. UserError if it is missing; what: its user, in the message. package:
    the name that pip knows, if it is not that of the module."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = package or module.partition(".")[0]
        raise UserError(f"{what} needs the package {package}: pip install {package} ({error})") from error
