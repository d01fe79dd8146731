"""Drives the scripts from outside, as a user does."""

import contextlib
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
AT_ONCE = {"helper.machine.distributed.SPEAK_AFTER": 0.1}  # ranks that lose another one end without a wait
DIGITS = ("--dataset", "digits", "--image_size", 8)  # their own size: a fifth of the work of 32 px
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def squeezed(text: str) -> str:
    """Markdown tables without the padding of their cells."""
    return re.sub(r" +\|", " |", text)


@dataclass(frozen=True)
class Done:
    """code: as a shell reports it, 128 + n after signal n."""

    code: int
    out: str
    err: str

    def refused(self, *words: str) -> None:
        """Exit code 2 and one sentence that holds all of `words`."""
        assert self.code == 2, (self.code, self.out, self.err)
        assert "Traceback" not in self.err + self.out, self.err
        assert len(self.err.strip().splitlines()) == 1, self.err
        missing = [word for word in words if word not in self.err]
        assert not missing, (missing, self.err)

    def finished(self) -> "Done":
        assert self.code == 0 and not self.err, (self.code, self.out, self.err)
        return self


class Process:
    def __init__(self, commands: "Commands", job: dict):
        self.commands, self.job = commands, job
        for name in ("out", "err"):
            Path(job[name]).touch()
        commands.tell(job)
        self.pid = commands.answer(job["number"])

    def kill(self) -> None:
        """Nothing if it has ended already."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> Done:
        code = os.waitstatus_to_exitcode(self.commands.answer(self.job["number"]))
        out, err = (Path(self.job[name]).read_text() for name in ("out", "err"))
        return Done(code if code >= 0 else 128 - code, out, err)


class Commands:
    """The scripts as commands, one at a time, each in a process forked from one that has imported torch already.

    python: an interpreter for tests that start processes themselves; its processes are forked likewise, so that the
    slow imports cost nothing. What a command starts with sys.executable is started with it.
    """

    def __init__(self, folder: Path):
        self.folder, self.numbers = folder, itertools.count()
        self.python, at = folder / "python", str(folder / "socket")
        client = [sys.executable, "-IS", str(Path(__file__).with_name("interpreter_client.py")), at]
        self.python.write_text(f'#!/bin/sh\nexec {shlex.join(client)} "$@"\n')
        self.python.chmod(0o755)
        command = [sys.executable, str(Path(__file__).with_name("nursery.py")), at, str(self.python)]
        self.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENV)
        assert self.hear() == "ready"

    def tell(self, job: dict) -> None:
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()

    def hear(self) -> str:
        line = self.server.stdout.readline()
        assert line, "the nursery has died"
        return line.strip()

    def answer(self, number: int) -> int:
        """The next one to this job: a test that failed between start() and wait() has left its own unread."""
        while True:
            job, value = json.loads(self.hear())
            if job == number:
                return value

    def start(self, script: str, *argv: object, cwd: Path | None = None, **hooks: object) -> Process:
        number = next(self.numbers)
        out, err = (str(self.folder / f"{number}.{name}") for name in ("out", "err"))
        argv = [str(a) for a in argv]
        job = {"number": number, "script": script, "argv": argv, "cwd": str(cwd or self.folder), "hooks": hooks}
        return Process(self, {**job, "out": out, "err": err})

    def load(self, *names: str, **env: str) -> None:
        """Let all later processes find these modules imported, in this environment, which some of them read then."""
        number = next(self.numbers)
        self.tell({"number": number, "load": names, "env": env})
        self.answer(number)

    def __call__(self, script: str, *argv: object, cwd: Path | None = None, **hooks: object) -> Done:
        return self.start(script, *argv, cwd=cwd, **hooks).wait()

    def teacher(self, *argv: object, **kwargs: object) -> Done:
        return self("train_teacher.py", *DIGITS, "--model", "resnet8", *argv, **kwargs)

    def student(self, *argv: object, **kwargs: object) -> Done:
        return self("train_student.py", *DIGITS, "--model_s", "resnet8", *argv, **kwargs)

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait()
