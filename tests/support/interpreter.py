"""A Python that trains nothing: it keeps what a script asks of it, so that the script itself can be run."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.support.commands import ROOT


class Interpreter:
    """Scripts run in a tree of their own, since they go to the root of what they lie in and may write there.

    answer: lines of shell that run at every call, with the call as "$@"; they may make files that a script looks for.
    """

    def __init__(self, folder: Path, answer: str = ""):
        self.venv, self.tree = folder / "venv", folder / "tree"
        python = self.venv / "bin" / "python"
        python.parent.mkdir(parents=True)
        # two calls at once may not mix: cat writes a call's line in one piece
        keep = f"{{ printf '%s\\0' \"$@\"; echo; }} >{self.venv}/call.$$\ncat {self.venv}/call.$$ >>{self.venv}/asked"
        python.write_text(f"#!/bin/bash\n{answer}\n{keep}\n")
        python.chmod(0o755)
        shutil.copytree(ROOT / "scripts", self.tree / "scripts", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        for name in ("requirements.txt", "requirements-extra.txt"):
            shutil.copy(ROOT / name, self.tree)
            shutil.copy(ROOT / name, self.venv / f".retort-{name}")

    def bash(self, script: str, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
        """scripts/`script` run to its end, however that is; what it asked for is then in venv/asked."""
        (self.venv / "asked").write_text("")
        env = {**os.environ, "VIRTUAL_ENV": str(self.venv), **env}
        command = ["bash", str(self.tree / "scripts" / script), *argv]
        return subprocess.run(command, env=env, capture_output=True, text=True)

    def run(self, script: str, *argv: str, **env: str) -> list[list[str]]:
        """[program, arguments...] of every call that scripts/`script` makes."""
        done = self.bash(script, *argv, **env)
        assert done.returncode == 0, done.stderr
        return [line.split("\0")[:-1] for line in (self.venv / "asked").read_text().splitlines()]
