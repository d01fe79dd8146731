"""A training command as a job: for a local process, and for a scheduler that pickles it. Imports nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class TrainCommand:
    """One job as something a scheduler can run, and put back into its queue when the time is up."""

    def __init__(self, argv: Sequence[str], log: str, environment: Mapping[str, str] | None = None):
        self.argv, self.log, self.environment = list(argv), log, dict(environment or {})
        self.process: subprocess.Popen | None = None

    def start(self) -> subprocess.Popen:
        Path(self.log).parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "train_student.py"), *self.argv],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
            )
        return self.process

    def __call__(self) -> int:
        code = self.start().wait()
        if code:
            raise RuntimeError(f"exit code {code}, see {self.log}")
        return code

    def checkpoint(self) -> Any:
        """submitit asks for this before a time limit or a pre-emption: save, and go on in another job."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            self.process.terminate()  # training saves at the next step
            self.process.wait()
        return DelayedSubmission(TrainCommand(self.argv, self.log, self.environment))
