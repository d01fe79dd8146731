"""Optional packages, which are looked for without an import: that takes seconds of every worker's start."""

import importlib.util

import pytest


def need(*packages: str) -> None:
    """Skip the test, or all of the file, where one is missing."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}, of requirements-extra.txt", allow_module_level=True)
