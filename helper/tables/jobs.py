"""The trainings of a table, and their processes on this machine."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.files import ROOT, remembered
from core.protocols import UserError
from helper.options.naming import folder_of, published_name
from helper.options.parse import parse, parse_students
from helper.options.settings import Settings
from helper.tables.published import IMAGE, Cell
from models import model_for


def result_folder(line: str) -> str | None:
    """The run's folder, in the line of a training's output that names it; None in any other line."""
    found = re.match(r"result in (.+)|already finished: (.*) holds the result", line)
    return None if found is None else found[1] or found[2]


def start(argv: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """A process of train_student.py that writes to a log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command, env = [sys.executable, str(ROOT / "train_student.py"), *argv], {**os.environ, **(environment or {})}
    with open(log, "a") as out:
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env)


@dataclass(frozen=True)
class Job:
    """One process. argv: of train_student.py. folders: the runs it finishes, one per student."""

    argv: tuple[str, ...]
    folders: tuple[Path, ...]
    labels: tuple[str, ...]

    def missing(self) -> list[Path]:
        return [f for f in self.folders if not (f / "parameters.json").exists()]

    @property
    def command(self) -> str:
        return shlex.join(["python", "train_student.py", *self.argv])


@dataclass(frozen=True)
class Want:
    """One run of a table: a cell and a trial, as its own command would train it."""

    cell: Cell
    trial: int
    argv: tuple[str, ...]
    settings: Settings

    @property
    def folder(self) -> Path:
        # the folder has the architecture's name, which may depend on the size of the images
        teacher = None if self.cell.alone else model_for(self.cell.teacher, IMAGE).name
        return folder_of(self.settings, teacher).models

    @property
    def label(self) -> str:
        return f"{self.cell.row} {self.cell.teacher} -> {self.cell.student} trial {self.trial}"

    @property
    def reads_logits_alone(self) -> bool:
        s, images = self.settings, IMAGE
        specs = (model_for(self.cell.student, images), model_for(self.cell.teacher, images))
        return s.method.before is None and not s.method.needs(s.config, *specs).teacher


def wants(cells: Iterable[Cell], trials: int, extra: Sequence[str]) -> list[Want]:
    """Every cell in every trial. extra: flags of every training."""
    out = []
    for trial in range(trials):
        for cell in cells:
            argv = (*cell.argv(trial), *extra)
            out.append(Want(cell, trial, argv, parse(argv, teacher=False)))
    return out


def plan(pending: Sequence[Want], lanes: int, cache: bool) -> list[Job]:
    """Jobs that train pending runs; several students share a job if each keeps exactly the settings of its command."""
    jobs: list[Job] = []
    groups: dict[Any, list[Want]] = {}
    for want in pending:
        if want.cell.alone:  # no teacher to share
            jobs.append(Job(want.argv, (want.folder,), (want.label,)))
            continue
        s = want.settings
        key = (want.trial, want.cell.teacher, s.loss.cls, s.loss.div, want.reads_logits_alone)
        groups.setdefault(key, []).append(want)
    for (_, teacher, _, _, logits), members in groups.items():
        cached: list[str] = []
        if logits and cache:
            root = Path(members[0].settings.run.save_root)
            dataset = members[0].settings.data.source.dataset
            cached = ["--teacher_cache", str(root / "teacher_cache" / f"{teacher}_{dataset}")]
        for bundle in bundles(members, lanes):
            argv = joined(bundle)
            assert argv is not None
            jobs.append(Job((*argv, *cached), tuple(w.folder for w in bundle), tuple(w.label for w in bundle)))
    return jobs


def bundles(members: Sequence[Want], lanes: int) -> list[list[Want]]:
    """Groups of at most `lanes` students: of one row, then several rows with the same students."""
    by_flags: dict[str, list[Want]] = {}
    for want in members:
        by_flags.setdefault(want.cell.flags, []).append(want)
    rows = [row[i : i + lanes] for row in by_flags.values() for i in range(0, len(row), lanes)]
    out: list[list[Want]] = []
    for row in rows:
        for bundle in out:
            if len(bundle) + len(row) <= lanes and joined([*bundle, *row]) is not None:
                bundle.extend(row)
                break
        else:
            out.append(list(row))
    return [part for bundle in out for part in ([bundle] if joined(bundle) else [[w] for w in bundle])]


def joined(bundle: Sequence[Want]) -> list[str] | None:
    """One command line that trains all exactly as their own command lines do; None if there is none."""
    if len(bundle) == 1:
        return list(bundle[0].argv)
    first = bundle[0]
    students = list(dict.fromkeys(w.cell.student for w in bundle))
    methods = list(dict.fromkeys(published_name(w.settings.distill) for w in bundle))
    if len(students) * len(methods) != len(bundle):
        return None
    own: list[str] = []
    for tokens in dict.fromkeys(tuple(own_flags(w.cell.flags)) for w in bundle):
        own += tokens
    argv = ["--path_t", first.argv[first.argv.index("--path_t") + 1], "--distill", ",".join(methods)]
    loss = first.settings.loss
    argv += ["-c", f"{loss.cls:g}", "-d", f"{loss.div:g}", *own, "--model_s", ",".join(students)]
    argv += [
        "--dataset",
        first.cell.dataset,
        "--trial",
        str(first.trial),
        *first.argv[len(first.cell.argv(first.trial)) :],
    ]
    try:
        (together,) = parse_students(argv, teacher=False)
    except UserError:
        return None
    alone = {(w.cell.student, w.settings.distill): w.settings for w in bundle}
    same = all(
        s.identity == alone[s.model, s.distill].identity
        and folder_of(s, first.cell.teacher) == folder_of(alone[s.model, s.distill], first.cell.teacher)
        for s in together
    )
    return argv if same else None


def own_flags(flags: str) -> list[str]:
    """The flags of a row, except the method and its three weights."""
    tokens, out = iter(shlex.split(flags)), []
    for token in tokens:
        if token in ("--distill", "-c", "-d", "-b", "-r", "-a"):
            next(tokens)  # its value
        else:
            out.append(token)
    return out


def run_local(jobs: Sequence[Job], logs: Path, slots: Sequence[Mapping[str, str]]) -> int:
    """Run jobs in all slots; returns the number of failed jobs. After Ctrl-C or SIGTERM each training saves first."""
    running: dict[Any, Any] = {}
    waiting, failed = list(enumerate(jobs)), 0
    free = list(range(len(slots)))

    def on_term(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, on_term)
    try:
        while waiting or running:
            while waiting and free:
                slot, (number, job) = free.pop(0), waiting.pop(0)
                log = logs / f"{number + 1:03d}.log"
                print(f"[{number + 1}/{len(jobs)}] {'; '.join(job.labels)} (log {log})", flush=True)
                running[start(job.argv, log, slots[slot])] = (slot, number, job, log)
            time.sleep(0.1)
            for process in [p for p in running if p.poll() is not None]:
                slot, number, job, log = running.pop(process)
                free.append(slot)
                if process.returncode or job.missing():
                    failed += 1
                    tail = (log.read_text(errors="replace").strip().splitlines() or ["nothing was logged"])[-1]
                    print(f"[{number + 1}/{len(jobs)}] failed with exit code {process.returncode}: {tail}", flush=True)
                else:
                    print(f"[{number + 1}/{len(jobs)}] done", flush=True)
    except KeyboardInterrupt:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
        print("interrupted; run the same command again to resume", flush=True)
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    return failed


def visible_gpus(count: int, environment: Mapping[str, str]) -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES of the `count` GPUs that torch sees: those in the caller's variable, if set."""
    named = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(gpu) for gpu in range(count)])[:count]


def slots_of(gpus: Sequence[str], per_gpu: int, jobs: int) -> list[dict[str, str]]:
    """The environment of each concurrent process. gpus: names from visible_gpus()."""
    if not gpus:
        return [{} for _ in range(jobs)]
    return [{"CUDA_VISIBLE_DEVICES": gpu} for _ in range(per_gpu) for gpu in gpus]


def short_teachers(pending: Iterable[Want]) -> list[str]:
    """A warning for each teacher whose recorded run was shorter than the table's."""
    warnings = {}
    for want in pending:
        paths = want.settings.teacher.path_t
        path = None if want.cell.alone or not paths else Path(paths[0])
        if path is None or path in warnings:
            continue
        recorded = remembered(path.parent / "parameters.json").get("epochs")
        due = want.cell.settings.training.schedule.epochs
        if isinstance(recorded, int) and recorded < due:
            warnings[path] = (
                f"warning: the teacher {path} was trained for {recorded} epochs, but that of the table for {due}"
            )
    return list(warnings.values())
