#!/usr/bin/env python3
"""Run a published table: bash scripts/run_table.sh simkd --trials 3 [--dry-run] [-- --data_folder ../data/]

Cells that are finished are skipped, interrupted ones go on where they stopped. Students of one teacher that share
weights of cross-entropy and KL are trained together, as lanes of one process (--lanes 1: each alone); methods that read
nothing but the teacher's logits take them from a cache on disk. One process per GPU (all, or those of
CUDA_VISIBLE_DEVICES); on a CPU, --jobs of them.
Everything after -- goes to every training command.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helper.jobs import ROOT, TrainCommand
from helper.opening import read_json
from helper.options import Settings, normalised, parse, parse_lanes, published_name
from helper.protocols import Side, UserError
from helper.published import FOLDER, Cell, Table, as_script, read_table, tables
from helper.session import folder_of
from models import model_for

IMAGE = (3, 32, 32)


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
        # the folder bears the architecture, which for two networks of one name depends on the size of the images
        teacher = None if self.cell.alone else model_for(self.cell.teacher, IMAGE).name
        return folder_of(self.settings, teacher, is_teacher=False).models

    @property
    def label(self) -> str:
        return f"{self.cell.row} {self.cell.teacher} -> {self.cell.student} trial {self.trial}"

    @property
    def reads_logits_alone(self) -> bool:
        s, images = self.settings, IMAGE
        specs = (model_for(self.cell.student, images), model_for(self.cell.teacher, images))
        return s.method.before is None and not s.method.needs(s.config, *specs).teacher


def wants(cells: Iterable[Cell], trials: int, extra: Sequence[str]) -> list[Want]:
    out = []
    for trial in range(trials):
        for cell in cells:
            argv = (*cell.argv(trial), *extra)
            out.append(Want(cell, trial, argv, parse(argv, teacher=False)))
    return out


def plan(pending: Sequence[Want], lanes: int, cache: bool) -> list[Job]:
    """Jobs that train what is pending: lanes where they give each student the very settings of its own command."""
    jobs: list[Job] = []
    groups: dict[Any, list[Want]] = {}
    for want in pending:
        if want.cell.alone:  # no teacher to share
            jobs.append(Job(want.argv, (want.folder,), (want.label,)))
            continue
        s = want.settings
        key = (want.trial, want.cell.teacher, s.cls, s.div, want.reads_logits_alone)
        groups.setdefault(key, []).append(want)
    for (_, teacher, _, _, logits), members in groups.items():
        cached: list[str] = []
        if logits and cache:
            root = Path(members[0].settings.save_root)
            cached = ["--teacher_cache", str(root / "teacher_cache" / f"{teacher}_{members[0].settings.dataset}")]
        for bundle in bundles(members, lanes):
            jobs.append(as_job(bundle, cached))
    return jobs


def bundles(members: Sequence[Want], lanes: int) -> list[list[Want]]:
    """At most `lanes` students together: of one row, then several rows of one set of students."""
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
    """One command line that trains them all exactly as their own command lines do; None where there is none."""
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
    argv += ["-c", f"{first.settings.cls:g}", "-d", f"{first.settings.div:g}", *own, "--model_s", ",".join(students)]
    argv += [
        "--dataset",
        first.cell.dataset,
        "--trial",
        str(first.trial),
        *first.argv[len(first.cell.argv(first.trial)) :],
    ]
    try:
        (together,) = parse_lanes(argv, teacher=False)
    except UserError:
        return None
    alone = {(w.cell.student, w.settings.distill): w.settings for w in bundle}
    same = all(
        s.identity == alone[s.model_s, s.distill].identity
        and folder_of(s, first.cell.teacher, False) == folder_of(alone[s.model_s, s.distill], first.cell.teacher, False)
        for s in together
    )
    return argv if same else None


def own_flags(flags: str) -> list[str]:
    """What of a row's flags is neither the method nor one of the three weights."""
    tokens, out = shlex.split(flags), []
    for name, value in zip(tokens[::2], tokens[1::2], strict=True):
        if name not in ("--distill", "-c", "-d", "-b", "-r", "-a"):
            out += [name, value]
    return out


def as_job(bundle: Sequence[Want], cached: Sequence[str]) -> Job:
    argv = joined(bundle)
    assert argv is not None
    return Job((*argv, *cached), tuple(w.folder for w in bundle), tuple(w.label for w in bundle))


def run_local(jobs: Sequence[Job], logs: Path, slots: Sequence[Mapping[str, str]]) -> int:
    """Keep every slot busy; number of jobs that failed. Ctrl-C and SIGTERM let each training save first."""
    waiting, running, failed = list(enumerate(jobs)), {}, 0
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
                running[TrainCommand(job.argv, str(log), slots[slot]).start()] = (slot, number, job, log)
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
        print("interrupted; the same command goes on from there", flush=True)
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    return failed


def run_submitit(jobs: Sequence[Job], logs: Path, cluster: str, parameters: Mapping[str, Any], wait: bool) -> int:
    """Hand the jobs to SLURM (or submitit's local executor) as one array; number of jobs that failed."""
    try:
        import submitit
    except ImportError as error:
        raise UserError("--executor slurm needs the package submitit: pip install submitit") from error
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    executor = submitit.AutoExecutor(folder=str(logs / "submitit"), cluster=cluster)
    try:
        executor.update_parameters(**{"name": "retort", "timeout_min": 24 * 60, **parameters})
    except (NameError, ValueError, TypeError) as error:
        raise UserError(f"--slurm: {error}") from error
    try:
        with executor.batch():  # on SLURM one job array
            handed = [
                executor.submit(TrainCommand(j.argv, str((logs / f"{i + 1:03d}.log").resolve())))
                for i, j in enumerate(jobs)
            ]
    except RuntimeError as error:
        raise UserError(f"cannot submit to {cluster}: {error}") from error
    for job, given in zip(jobs, handed, strict=True):
        print(f"submitted {given.job_id}: {'; '.join(job.labels)}", flush=True)
    if not wait:
        return 0
    return sum(given.exception() is not None for given in handed)


def visible_gpus(count: int, environment: Mapping[str, str]) -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls each of the `count` GPUs that torch sees: the caller's own names, if given."""
    named = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(gpu) for gpu in range(count)])[:count]


def slots_of(gpus: Sequence[str], per_gpu: int, jobs: int) -> list[dict[str, str]]:
    """The environment of each process that may run at one time. gpus: as visible_gpus() names them."""
    if not gpus:
        return [{} for _ in range(jobs)]
    return [{"CUDA_VISIBLE_DEVICES": gpu} for _ in range(per_gpu) for gpu in gpus]


def chosen_cells(table: Table, only: str) -> list[Cell]:
    """Cells whose row or student is called as one of the words separated by commas; where none is, those whose row or
    student holds the word. UserError for a word that chooses nothing."""
    words = [w.strip().lower() for w in only.split(",") if w.strip()]
    names = {name.lower() for cell in table.cells for name in (cell.row, cell.student)}
    meant: set[str] = set()
    for word in words:
        found = {word} & names or {name for name in names if word in name}
        if not found:
            raise UserError(
                f"--only {word} names no row and no student of {table.name}; its rows are {', '.join(table.rows)}, its "
                f"students {', '.join(dict.fromkeys(student for _, student, _ in table.pairs))}"
            )
        meant |= found
    return [c for c in table.cells if not words or {c.row.lower(), c.student.lower()} & meant]


def short_teachers(pending: Iterable[Want]) -> list[str]:
    """A warning for each teacher whose run, if recorded beside its checkpoint, was shorter than the table's."""
    warnings = {}
    for want in pending:
        path = None if want.cell.alone else Path(want.settings.path_t[0])
        if path is None or path in warnings:
            continue
        recorded, due = read_json(path.parent / "parameters.json").get("epochs"), want.cell.settings.epochs
        if isinstance(recorded, int) and recorded < due:
            warnings[path] = f"warning: the teacher {path} was trained for {recorded} epochs, the table's for {due}"
    return list(warnings.values())


def write_scripts() -> None:
    """Bring scripts/cifar100/*_table.sh in line with the tables."""
    for name in tables():
        path = FOLDER.parent / f"{name}_table.sh"
        path.write_text(literal(name))
        print(f"wrote {path.relative_to(ROOT)}")


def literal(name: str) -> str:
    return as_script(read_table(name), macs_of)


def macs_of(cell: Cell) -> list[int]:
    """Multiply-accumulates of training on one image, per stage of the method."""
    from helper.cost import training_macs

    student, forward = counted(cell.student)
    teacher, forward_t = (None, 0) if cell.alone else counted(cell.teacher)
    forwards = {student.spec.name: forward} | ({} if teacher is None else {teacher.spec.name: forward_t})
    return training_macs(cell.settings.method, cell.settings.config, student, teacher, forwards)


@cache
def counted(name: str) -> tuple[Side, int]:
    """A network of the tables as methods see it, and its multiply-accumulates for one image."""
    import torch

    from helper.cost import macs
    from helper.taps import TappedNet, probe

    spec = model_for(name, IMAGE)
    net, images = TappedNet(spec(num_classes=100), spec, tuple(spec.taps)), {"image": IMAGE}
    return probe(net, images), macs(net, images, torch.device("cpu"))


def key_values(text: str) -> dict[str, Any]:
    """'partition=gpu,timeout_min=60' -> update_parameters of submitit."""
    out: dict[str, Any] = {}
    for pair in filter(None, text.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--slurm '{pair}' is not of the form NAME=VALUE, such as slurm_partition=gpu")
        out[key] = int(value) if value.isdecimal() else value
    return out


class _Parser(argparse.ArgumentParser):
    """argparse, except that a flag of training is answered with its place."""

    def error(self, message: str) -> Any:
        kind, _, words = message.partition(": ")
        if kind == "unrecognized arguments":
            raise UserError(
                f"run_table.py does not know {words}: flags of training come after --, as in run_table.sh simkd -- "
                "--data_folder ../data/"
            )
        super().error(message)


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    argv, extra = argv[:cut], argv[cut + 1 :]
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", help="see --list; or the path of a table of your own, FILE.toml")
    parser.add_argument("--list", action="store_true", help="name the tables")
    parser.add_argument("--trials", type=int, default=1, help="repetitions, with trial and seed 0, 1, ... (default 1)")
    parser.add_argument(
        "--only", default="", help="rows and students called so, or else with that in their name: KD,vgg8"
    )
    parser.add_argument("--dry_run", action="store_true", help="print what would run and what is finished")
    parser.add_argument("--lanes", type=int, default=6, help="students to train in one process (default 6)")
    parser.add_argument("--no_cache", action="store_true", help="keep no cache of the teacher's logits")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time where there is no GPU (default 1)")
    parser.add_argument("--per_gpu", type=int, default=1, help="processes per GPU (default 1)")
    parser.add_argument("--executor", choices=("local", "slurm", "submitit"), default="local")
    parser.add_argument("--slurm", default="", help="parameters of submitit, as slurm_partition=gpu,gpus_per_node=1")
    parser.add_argument("--no_wait", action="store_true", help="leave after submitting")
    parser.add_argument("--write", action="store_true", help="write scripts/cifar100/*_table.sh from the tables")
    args = parser.parse_args(normalised(argv))
    if args.write:
        write_scripts()
        return 0
    if args.list or not args.table:
        for name in tables():
            table = read_table(name)
            print(f"{name:24s} {table.title}: {len(table.cells)} cells; {table.source}")
        return 0
    for name in ("trials", "lanes", "jobs", "per_gpu"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)} must be at least 1")
    table = read_table(args.table)
    everything = wants(chosen_cells(table, args.only), args.trials, extra)
    finished = [w for w in everything if (w.folder / "parameters.json").exists()]
    pending = [w for w in everything if w not in finished]
    jobs = plan(pending, args.lanes, not args.no_cache)
    print(
        f"{table.name}: {len(everything)} runs, {len(finished)} finished, {len(pending)} to do in {len(jobs)} processes"
    )
    for warning in short_teachers(pending):
        print(warning)
    if args.dry_run:
        for want in finished:
            print(f"# finished: {want.label}")
        for job in jobs:
            print(f"# {'; '.join(job.labels)}\n{job.command}")
        return 0
    lacking = {w.settings.path_t[0] for w in pending if not w.cell.alone and not Path(w.settings.path_t[0]).exists()}
    if lacking:
        raise UserError(
            f"no teacher at {', '.join(sorted(lacking))}: bash scripts/fetch_teachers.sh or "
            "bash scripts/train_teachers.sh brings it"
        )
    logs = Path(everything[0].settings.save_root) / "run_table" / table.name
    if args.executor == "local":
        import torch

        gpus = visible_gpus(torch.cuda.device_count(), os.environ)
        failed = run_local(jobs, logs, slots_of(gpus, args.per_gpu, args.jobs))
    else:
        cluster = "slurm" if args.executor == "slurm" else "local"
        failed = run_submitit(jobs, logs, cluster, key_values(args.slurm), not args.no_wait)
    if failed:
        print(f"{failed} of {len(jobs)} processes failed; the same command tries them again", file=sys.stderr)
        return 1
    root = everything[0].settings.save_root
    print(f"the table: python scripts/make_table.py --root {root} --published {args.table} --pivot")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
