"""Data that lies beside the repository."""

from pathlib import Path

import pytest

from tests.support.commands import ROOT


def shared(name: str) -> Path:
    """A file or folder of it. Where it is absent, the test that asks is skipped."""
    path = ROOT.parent / "shared" / "data" / name
    if not path.exists():
        pytest.skip(f"shared data is absent: {name}")
    return path
