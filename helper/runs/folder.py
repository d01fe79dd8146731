"""A run's folder: its name, its records, and the rules for resuming it.

Layout (that of the SimKD toolbox): save/{teachers,students}/models/NAME holds checkpoints and json files,
save/{teachers,students}/tensorboard/NAME the event files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from core import lock
from core.files import atomic_write, atomic_write_text, read_json, remember, remembered
from core.option import NAMED, RESULT, Around, Config, at_least, option
from core.protocols import UserError
from core.registry import loaded_plugins

SEPARATOR = "~" if os.name == "nt" else ":"


def plain_word(flag: str, text: str) -> None:
    """UserError if a text cannot be part of a folder's name. flag: the flag that gives it."""
    if not text.strip(".") or any(c in text for c in "/\\") or not text.isprintable():
        raise UserError(f"{flag} {text!r} becomes part of a folder name and must be a plain word or number")


@dataclass(frozen=True)
class RunConfig(Config):
    """Name, repetition, seed and files of a run."""

    heading = "run"

    trial: str = option("0", "name of this repetition", short="-t", check=plain_word, role=NAMED, metavar="NAME")
    trials: int = option(1, "number of repetitions, numbered from --trial", check=at_least(1, 10**4))
    seed: int | None = option(
        None, "random seed (default: the trial number, or crc32 of its name)", short="--manual_seed", role=RESULT
    )
    save_root: str = option("./save", "root folder of runs and teachers", metavar="FOLDER")
    name: str | None = option(
        None, "name of the run's folder (default: built from its settings)", check=plain_word, metavar="NAME"
    )
    run_names: str = option(
        "published",
        "spelling of run folders: published, with : and , or portable, for all file systems and rsync",
        choices=("published", "portable"),
    )
    resume: str = option("auto", "auto: resume the existing run; or the path of a _last.pth", metavar="FILE")
    extend: int | None = option(
        None,
        "prolong a finished run of this many epochs to --epochs; the other settings must be those of the run",
        check=at_least(1),
        role=RESULT,
    )
    overwrite: bool = option(False, "delete the existing run of this name and start from scratch")
    dry_run: bool = option(False, "parse, build, train one batch, and write nothing")
    tb_backend: str = option(
        "tensorboard", "writer of event files", choices=("tensorboard", "tensorboard_logger", "none")
    )
    plugin: list[str] | None = option(None, "Python files that define more methods or models", metavar="FILE")
    use_lmdb: bool = option(False, "accepted for old scripts, without effect")
    tb_freq: int | None = option(None, "accepted for old scripts, without effect")
    save_freq: int | None = option(None, "accepted for old scripts, without effect")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise UserError(f"the seed {self.seed} (--seed, or the number of --trial) must be in [0, 2^63)")

    def idle(self, around: Around) -> dict[str, str]:
        return dict.fromkeys(("use_lmdb", "tb_freq", "save_freq"), "accepted for old scripts")


def portable(name: str) -> str:
    """A name that holds only letters, digits and -_.=+~, which scp, rsync, Docker volumes, exFAT and Windows accept."""
    return re.sub(r"[^\w.=+~-]", "-", name.replace(":", "="))


def file_name(network: str) -> str:
    """A registry name as part of a file name: the colon of `timm:NAME` is kept where the system allows it."""
    return network.replace(":", SEPARATOR).replace("/", "-")


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run, and the rules for entering it."""

    models: Path
    tensorboard: Path
    network: str  # registry name of the trained network; part of the checkpoints' names

    @property
    def best(self) -> Path:
        return self.models / f"{file_name(self.network)}_best.pth"

    @property
    def last(self) -> Path:
        return self.models / f"{file_name(self.network)}_last.pth"

    @property
    def previous(self) -> Path:
        """The state before the last one; it exists until the run is finished."""
        return previous_of(self.last)

    @property
    def metrics(self) -> Path:
        return self.models / "metrics.jsonl"

    @property
    def best_metrics(self) -> Path:
        return self.models / "test_best_metrics.json"

    @property
    def finished(self) -> Path:
        """Written last: a run with this file is complete."""
        return self.models / "parameters.json"

    @property
    def log(self) -> Path:
        return self.models / "log.txt"

    def enter(self, described: Mapping[str, Any], overwrite: bool, moved: Collection[str] = ()) -> bool:
        """Create or enter the folder. described: the content of args.json. True if the run is already finished.

        Raises UserError when the folder holds a run with other settings, naming each of them; moved: as for
        refuse_differences().
        """
        folders = (self.models, self.tensorboard)
        for link in (folder for folder in folders if overwrite and folder.is_symlink()):
            raise UserError(
                f"--overwrite would delete the target of the link {link}: remove the link, or choose another --trial"
            )
        try:
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            lock.hold(self.models)
            if overwrite:
                # first the files that a later process would take for this run's state, in case deleting is interrupted
                for path in (self.last, self.previous, self.finished):
                    path.unlink(missing_ok=True)
                for folder in folders:
                    _empty(folder)
            for path in (self.metrics, self.log):  # deleted, as appending would follow a link
                if path.is_symlink():
                    atomic_write(path.read_bytes() if path.exists() else b"", path)
            for leftover in self.models.glob(".*.tmp"):  # left by a process that was killed while saving
                leftover.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the run folder {self.models}: {error.strerror}") from error
        args = self.models / "args.json"
        if args.exists():
            before = read_json(args, {"identity": dict}, "--overwrite starts the run from scratch")["identity"]
            refuse_differences(self.models, before, json.loads(json.dumps(described["identity"])), moved)
            if not self.finished.exists():
                self._note_continuation()
        else:
            remember(environment(), self.models / "env.json")
            remember(described, args)
        return self.finished.exists()

    def _note_continuation(self) -> None:
        """Add to env.json what differs in this process from the first: commit, machine or torch."""
        path = self.models / "env.json"
        first = remembered(path)
        now = json.loads(json.dumps(environment()))
        other = {k: v for k, v in now.items() if first.get(k) != v}
        noted = first.get("continued")
        noted = noted if isinstance(noted, list) else []
        if other and other not in noted:
            remember(first | {"continued": [*noted, other]}, path)

    def adopt(self, other: Path) -> None:
        """Copy the rows and the best checkpoint of the run in folder `other`, which this run continues."""
        if other.resolve() == self.models.resolve():
            return
        for path in (self.metrics, self.best, self.best_metrics):
            source = other / path.name
            if source.exists():
                atomic_write(source.read_bytes(), path)
            else:
                path.unlink(missing_ok=True)

    def rows(self) -> list[dict[str, Any]]:
        """The complete rows of metrics.jsonl; an incomplete last line (the run was killed while writing) is left
        out."""
        if not self.metrics.exists():
            return []
        rows = []
        for line in self.metrics.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not is_row(row):
                break
            rows.append(row)
        return rows

    def trim(
        self, done: tuple[int, int], copy: list[dict[str, Any]] | None, logger: logging.Logger
    ) -> list[dict[str, Any]]:
        """Cut metrics.jsonl after (stage, epoch) `done`; later rows are computed again.

        copy: the checkpoint's rows, which replace different ones; None in files of older versions, which must have one
        row per epoch, or UserError.
        """
        rows = [r for r in self.rows() if (r["stage"], r["epoch"]) <= done]
        if copy is not None:
            if json.dumps(rows) != json.dumps(copy):
                logger.info("%s differs from the rows in the checkpoint and is written again from them", self.metrics)
            rows = list(copy)
        elif wrong := wrong_rows(rows, done):
            raise UserError(f"{self.metrics} {wrong}: restore the file, or pass --overwrite to start from scratch")
        atomic_write_text(self.metrics, "".join(json.dumps(r) + "\n" for r in rows))
        return rows

    def append(self, row: Mapping[str, Any]) -> None:
        try:
            with open(self.metrics, "a") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write {self.metrics}: {error.strerror}; the run can be resumed from {self.last}"
            ) from error


def _empty(folder: Path) -> None:
    """Delete the content of a folder except the lock; links are deleted, not their targets."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != lock.NAME:
            path.unlink(missing_ok=True)


def previous_of(last: Path) -> Path:
    """X_last.pth -> X_last.prev.pth, the state before it."""
    return last.parent / f"{last.stem}.prev{last.suffix}"


def rows_checksum(rows: list[dict[str, Any]]) -> str:
    """Checksum of the rows of metrics.jsonl, for parameters.json."""
    return hashlib.blake2b(json.dumps(rows).encode(), digest_size=16).hexdigest()


def is_row(row: Any) -> bool:
    """Whether a line of metrics.jsonl has the fields of its position."""
    return isinstance(row, dict) and all(type(row.get(k)) is int for k in ("stage", "epoch"))


def wrong_rows(rows: list[dict[str, Any]], done: tuple[int, int] | None = None) -> str:
    """The error in the order of rows, "" if there is none: each stage counts from 1. done: position of the last row."""
    place = (-1, 0)
    for row in rows:
        here = (row["stage"], row["epoch"])
        if here != (place[0], place[1] + 1) and not (here[0] > place[0] and here[1] == 1):
            return f"has epoch {here[1]} of stage {here[0]} after epoch {place[1]} of stage {place[0]}"
        place = here
    if done is not None and done[1] and place != done:
        return f"ends before epoch {done[1]} of stage {done[0]}"
    return ""


def refuse_differences(
    what: Path, before: Mapping[str, Any], now: Mapping[str, Any], moved: Collection[str] = ()
) -> None:
    """UserError that names every setting in which two identities differ. what: the owner of `before` in the message.

    A setting that is missing in `before` did not exist when it was recorded; it counts only if the user has changed it
    from its default (`moved`).
    """
    different = [k for k in {**before, **now} if before.get(k) != now.get(k) and (k in before or k in moved)]
    if different:
        changes = "; ".join(f"{k} was {before.get(k)}, is {now.get(k)}" for k in different)
        raise UserError(
            f"{what} holds a run with other settings ({changes}): choose another --trial, "
            "or pass --overwrite to start it from scratch"
        )


def without_folders(words: Iterable[str]) -> list[str]:
    """A command for publication: absolute paths, alone or after = or :, keep only their last part."""
    return [re.sub(r"(^|[=:])(?!//[^/])/(?:[^:]*/)?([^/:]+)", r"\1.../\2", word) for word in words]


def paths_in(words: Iterable[str]) -> list[str]:
    """The absolute paths among the words of a command, the longest first."""
    found = {m[2] for word in words for m in re.finditer(r"(^|[=:])(?!//[^/])(/[^:]*[^/:])", word)}
    return sorted(found, key=len, reverse=True)


# settings in which runs of one teacher's experiment may differ
SCHEDULE = ("epochs", "lr_decay_epochs", "warmup_epochs", "max_steps", "trial", "seed")


def short_name_notice(link: Path, run: RunFolder) -> str:
    """Give a finished teacher its short name, save/teachers/models/NAME_vanilla, which published commands read.

    Runs with --max_steps get none. A longer run of the same experiment takes over the name; otherwise it is kept.
    Returns a notice of the run that the name points to, and how to repoint it.
    """
    name = shlex.quote(str(link))
    mine = _identity(run.models)
    if mine.get("max_steps"):
        return f"a run with --max_steps is a trial: {link} does not point to it"
    taken = link.exists() or link.is_symlink()
    if taken and link.resolve() == run.models.resolve():
        return f"also reachable as {link}"
    longer = taken and _longer(mine, _identity(link)) and link.is_symlink()
    if not taken or longer:
        before = os.readlink(link) if longer else ""
        try:
            temporary = link.with_name(f".{link.name}.{os.getpid()}")
            temporary.symlink_to(run.models.name, target_is_directory=True)
            temporary.replace(link)
        except OSError:  # a file system without links: the long name works
            return f"this file system has no links: use the long name, not {link}"
        return f"also reachable as {link}" + (f", which pointed to the shorter run {before}" if longer else "")
    away = f"rm {name}" if link.is_symlink() else f"mv {name} {shlex.quote(f'{link}_before')}"
    return (
        f"the alias {link} already points to another run or file. To point it here: "
        f"{away} && ln -s {shlex.quote(run.models.name)} {name}"
    )


def _identity(folder: Path) -> Mapping[str, Any]:
    """The settings of the run in a folder; {} if it holds none."""
    found = remembered(folder / "args.json").get("identity")
    return found if isinstance(found, dict) else {}


def _longer(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether a run is the same experiment as another, with more epochs or without --max_steps."""
    if not theirs or any(mine.get(k) != v for k, v in theirs.items() if k not in SCHEDULE):
        return False
    return bool(theirs.get("max_steps")) or mine.get("epochs", 0) > theirs.get("epochs", 0)


PACKAGES = ("torch", "torchvision", "numpy", "scipy", "nvidia-dali-cuda120")


def environment() -> dict[str, Any]:
    """Commit, versions and hardware, for env.json."""

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {p: next((d.version for d in metadata.distributions(name=p)), None) for p in PACKAGES},
        "cuda": torch.version.cuda,
        "cpu": _cpu_name(),
        "cpu_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "plugins": loaded_plugins(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        if named := re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return named[1].strip()
    return platform.processor()
