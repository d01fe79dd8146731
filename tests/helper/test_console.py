"""What the console cannot show, and what a shell leaves alone."""

import io
import os
import sys

import pytest

from core.protocols import UserError
from helper.machine.program import run_script
from helper.options.parse import normalised, parse


def test_an_encoding_without_a_character_ends_no_program(monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="latin-1") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])

    def main(argv):
        print("93.1 ± 0.2 → README")
        raise UserError("no folder 猫")

    with pytest.raises(SystemExit, match="^2$"):
        run_script(main)
    for stream in streams:
        stream.flush()
    assert [s.buffer.getvalue().decode("latin-1") for s in streams] == ["93.1 ± 0.2 ? README\n", "no folder ?\n"]


def test_a_tilde_is_the_home_folder():
    home = os.path.expanduser("~")
    assert normalised(["--save-root=~/x", "--data", "~/y", "--trial", "~z", "--x=a~/b"]) == [
        f"--save_root={home}/x",
        "--data",
        f"{home}/y",
        "--trial",
        "~z",
        "--x=a~/b",
    ]
    assert parse(["--save_root=~/runs"], teacher=True).run.save_root == f"{home}/runs"
