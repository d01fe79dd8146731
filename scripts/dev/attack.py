#!/usr/bin/env python3
"""Test whether runs lose or silently change results: python scripts/dev/attack.py --out results/attack.md

  kills    runs of every kind are killed at random writes and steps until they finish; they must equal a run that was
           left alone
  damage   one file of a run is flipped, cut, zeroed or deleted; the run that continues must end with the same numbers,
           or be refused in one sentence; a table of a finished run must be the same, or refused
  inputs   wrong numbers, choices and paths of every flag (wrong_inputs.py), each with words of the sentence expected

Prints counts by outcome; exit code 1 if a run lost something, differed silently, hung, or ended in a traceback.
"""

from __future__ import annotations

import itertools
import json
import queue
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import atomic_write_text
from helper.machine.program import ScriptParser
from helper.networks.checkpoint import load_file
from helper.tables.writers import as_markdown
from scripts.dev.wrong_inputs import BRIEF, Known, Wrong, every
from tests.support.commands import Commands, Done
from tests.support.recordings import left_bright, write_video

TIMING = ("seconds_", "img_per_s", "cache_hit_rate", "Total time")


@dataclass(frozen=True)
class Kind:
    """A kind of run. argv: behind the script; TEACHER, CACHE and CLIPS stand for paths. ranks: processes."""

    script: str
    argv: tuple[object, ...]
    ranks: int = 0


def _digits(*argv: object, script: str = "train_student.py") -> Kind:
    model = ("--model_s", "resnet8", "--path_t", "TEACHER") if script == "train_student.py" else ("--model", "resnet8")
    return Kind(script, ("--dataset", "digits", *model, *BRIEF, *argv))


CACHED = "kd, teacher cache"
KINDS = {
    "teacher": _digits(script="train_teacher.py"),
    "kd": _digits("--distill", "kd"),
    CACHED: _digits("--distill", "kd", "--teacher_cache", "CACHE"),
    "simkd": _digits("--distill", "simkd"),
    "crd": _digits("--distill", "crd", "--nce_k", 16),
    "two stages (ab)": _digits("--distill", "ab", "--init_epochs", 1),
    "two students": _digits("--distill", "kd,at"),
    "parts of the loss (dot)": _digits("--distill", "dot"),
    "average of weights": _digits("--distill", "kd", "--ema", 0.9),
    "mixed images, micro-batches": _digits("--distill", "kd", "--mixup", 0.5, "--accumulate", 2),
    "two processes": Kind("train_teacher.py", _digits(script="train_teacher.py").argv, ranks=2),
    "clips": Kind(
        "train_teacher.py",
        (
            *("--model", "tsm:resnet8", "--dataset", "video", "--data_folder", "CLIPS", "--image_size", 16),
            *("--num_segments", 2, "--batch_size", 2, "--num_workers", 0, "--epochs", 2, "--max_steps", 2),
            *("--frame_cache", "CACHE", "--tb_backend", "none"),
        ),
    ),
}
HALVED = (CACHED, "two students", "clips", "simkd")  # kinds whose files are damaged
DAMAGE = ("flip", "half", "zeros", "missing")
UNREAD = ("log.txt", "lock.json", ".lock", "test_best_metrics.json")  # written for people, or empty
GOOD = ("same", "refused", "as expected", "accepted")
KILLED, SLOW = 137, 120.0
ENOUGH = 40  # kills of one run; then it may finish


class Attack:
    """Counts outcomes by (part, case). root: an empty folder. commands: as many as cases may run at a time."""

    def __init__(self, root: Path, commands: Sequence[Commands], seed: int = 0, until: float = float("inf")):
        self.root, self.seed, self.until = root, seed, until
        self.idle: queue.Queue[Commands] = queue.Queue()
        for one in commands:
            self.idle.put(one)
        self.counts: dict[tuple[str, str], Counter[str]] = {}
        self.examples: list[str] = []
        self.killed = 0
        self.lock = threading.Lock()
        self.clips = clip_lists(root / "clips")
        teacher = root / "t"
        self.finish(self.run(teacher, KINDS["teacher"], teacher=None))
        (self.teacher,) = teacher.rglob("resnet8_best.pth")
        self.whole: dict[str, dict[str, Any]] = {}
        self.halves: dict[str, Path] = {}

    def command(self, script: str, *argv: object, **hooks: object) -> Done:
        """One command in one of the processes that wait for them; ended by force after SLOW seconds."""
        commands = self.idle.get()
        try:
            process = commands.start(script, *argv, **hooks)
            slow = threading.Timer(SLOW, process.kill)
            slow.start()
            done = process.wait()
            late = not slow.is_alive()
            slow.cancel()
        finally:
            self.idle.put(commands)
        return Done(124, done.out, done.err) if late else done

    def run(self, root: Path, kind: Kind, teacher: Path | None, **hooks: object) -> Done:
        """One command, whose runs and caches lie below `root`."""
        places = {"TEACHER": teacher, "CACHE": root / "cache", "CLIPS": self.clips}
        argv = [places.get(word, word) if isinstance(word, str) else word for word in kind.argv]
        if kind.ranks:
            victim = {"in_rank": [random.Random(repr(hooks)).randrange(kind.ranks), hooks]} if hooks else {}
            hooks = {"ranks": kind.ranks, **victim}
        return self.command(kind.script, *argv, "--save_root", root, **hooks)

    @staticmethod
    def finish(done: Done) -> None:
        if done.code:
            raise RuntimeError(f"a run that was left alone ended with {done.code}: {done.out} {done.err}")

    def reference(self, kind: str) -> dict[str, Any]:
        """What a run of this kind comes to when it is left alone."""
        if kind not in self.whole:
            root = self.root / f"whole {kind}"
            self.finish(self.run(root, KINDS[kind], self.teacher))
            self.whole[kind] = results(root)
        return self.whole[kind]

    def half(self, kind: str) -> Path:
        """The folder of a run of this kind that was stopped after its first epoch."""
        if kind not in self.halves:
            root = self.root / f"half {kind}"
            done = self.run(root, KINDS[kind], self.teacher, signals=[[3, 15]])
            if done.code != 143:
                raise RuntimeError(f"{kind} was not stopped: {done.out} {done.err}")
            self.halves[kind] = root
        return self.halves[kind]

    def note(self, part: str, case: str, outcome: str, said: str = "") -> None:
        with self.lock:
            self.counts.setdefault((part, case), Counter())[outcome] += 1
            if outcome not in GOOD:
                self.examples.append(f"{part}, {case}: {outcome}. {said.replace(f'{self.root}/', '').strip()[-600:]}")
                print(self.examples[-1], file=sys.stderr, flush=True)

    def judge(self, done: Done) -> str:
        """ "" of a command that finished, refused, or what went wrong."""
        if "Traceback" in done.err + done.out:
            return "traceback"
        if done.code == 124:
            return f"not ended after {SLOW:g} s"
        lines = done.err.strip().splitlines()
        if done.code == 2 and (len(lines) == 1 or lines[:1] and ("usage:" in done.err or "--help" in lines[-1])):
            return "refused"
        return f"exit code {done.code}" if done.code else ""

    # ---- the parts

    def kill(self, kind: str, number: int) -> None:
        """One chain: killed at random places, resumed, until it finishes."""
        rng, root, done = random.Random(f"{self.seed} {kind} {number}"), self.root / f"killed {kind} {number}", None
        count = 0
        while done is None or done.code == KILLED:
            where = rng.choice(("fsync", "fsync", "torn", "step"))
            hook = {"signals": [[rng.randint(1, 4), 9]]} if where == "step" else {where: rng.randint(1, 12)}
            done = self.run(root, KINDS[kind], self.teacher, **(hook if count < ENOUGH else {}))
            count += done.code == KILLED
        outcome = self.judge(done) or ("same" if results(root) == self.reference(kind) else "DIFFERENT")
        self.note("kills", kind, "lost: refused" if outcome == "refused" else outcome, done.err)
        with self.lock:
            self.killed += count
        shutil.rmtree(root)

    def damage(self, kind: str, place: Path, how: str, number: int) -> None:
        """A run that was stopped after its first epoch; one of its files is damaged. place: below its root."""
        root = self.spoilt(self.half(kind), place, how, f"{kind} {number}")
        done = self.run(root, KINDS[kind], self.teacher)
        outcome = self.judge(done) or ("same" if results(root) == self.reference(kind) else "DIFFERENT")
        self.note("damage", f"{kind}: {place.name}, {how}", outcome, done.err)
        shutil.rmtree(root)

    def damage_finished(self, kind: str, place: Path, how: str, number: int) -> None:
        """A run that has finished; one of its files is damaged, and a table is made."""
        whole = self.root / f"whole {kind}"
        root = self.spoilt(whole, place, how, f"{kind} {number} table")
        good, done = (self.command("scripts/make_table.py", "--root", folder) for folder in (whole, root))
        same = done.out == good.out or "unfinished" in done.err or how == "missing"
        self.note("damage", f"table, {place.name}, {how}", self.judge(done) or ("same" if same else "DIFFERENT"))
        shutil.rmtree(root)

    def spoilt(self, whole: Path, place: Path, how: str, seed: str) -> Path:
        """A copy of the folder `whole` in which the file at `place` is damaged."""
        root = Path(tempfile.mkdtemp(dir=self.root)) / "damaged"
        shutil.copytree(whole, root, symlinks=True)
        spoil(root / place, how, random.Random(f"{self.seed} {seed} {place}"))
        return root

    def inputs(self) -> list[Wrong]:
        """Every wrong input; makes the files that they name."""
        self.reference("kd")
        (other,) = (path.parent for path in (self.root / "whole kd").rglob("metrics.jsonl"))
        (self.root / "known").mkdir()
        return every(Known(self.root / "known", self.teacher, self.root / "t", other))

    def wrong(self, wrong: Wrong) -> None:
        done = self.command(wrong.script, *wrong.argv, memory=6 * 2**30)
        outcome = self.judge(done) or "accepted"
        if outcome == "refused":
            named = wrong.words in " ".join(done.err.split())
            outcome = "as expected" if named else f"refused, without {wrong.words!r}"
        elif outcome == "accepted" and not wrong.may_run:
            outcome = "ACCEPTED"
        self.note("inputs", wrong.case, outcome, done.err)

    def report(self) -> str:
        totals, trials = Counter[str](), Counter[str]()
        grouped: dict[tuple[str, str], Counter[str]] = {}
        for (part, case), found in sorted(self.counts.items()):
            totals.update({f"{part}: {k}": v for k, v in found.items()})
            trials[part] += found.total()
            name = case.split(":")[0].split(" ")[0] if part == "inputs" else case
            grouped.setdefault((part, name), Counter()).update(found)
        rows = [
            (part, case, str(found.total()), ", ".join(f"{v} {k}" for k, v in sorted(found.items())))
            for (part, case), found in grouped.items()
        ]
        parts = [
            f"{self.killed} SIGKILLs in {trials['kills']} runs, {trials['damage']} damaged files, "
            f"{trials['inputs']} wrong inputs; {len(self.examples)} faults.",
            "\n".join(f"- {k}: {v}" for k, v in sorted(totals.items())),
            as_markdown(("part", "case", "trials", "outcomes"), rows).rstrip(),
        ]
        if self.examples:
            parts += ["Faults:", "\n".join(f"- {' '.join(e.split())}" for e in self.examples)]
        return "\n\n".join(parts) + "\n"


def clip_lists(root: Path) -> Path:
    for i in range(6):
        write_video(root / f"{i}.avi", left_bright(6, i))
    (root / "train.txt").write_text("".join(f"{i}.avi {i % 2}\n" for i in range(4)))
    (root / "test.txt").write_text("4.avi 0\n5.avi 1\n")
    return root


def results(root: Path) -> dict[str, Any]:
    """Rows without times, final weights and the teacher's accuracy of every run below a folder."""
    found: dict[str, Any] = {}
    for path in sorted(root.glob("*/models/*/metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        (last,) = path.parent.glob("*_last.pth")
        weights = load_file(last)["step_state"]["trained"]
        parameters = json.loads((path.parent / "parameters.json").read_text())
        found[path.parent.name] = (
            [{k: v for k, v in row.items() if not k.startswith(TIMING)} for row in rows],
            {k: v.tolist() for k, v in weights.items() if isinstance(v, torch.Tensor)},
            [parameters["teacher_acc"], parameters["best"], parameters["rows"] is not None],
        )
    return found


def spoil(path: Path, how: str, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if how == "missing":
        return path.unlink()
    if how == "half":
        del content[len(content) // 2 :]
    elif how == "zeros":
        start = rng.randrange(len(content))
        length = min(4096, len(content) - start)
        content[start : start + length] = bytes(length)
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def files_of(root: Path) -> list[Path]:
    """What a run may read back, below its root."""
    files = (p for p in sorted(root.rglob("*")) if p.is_file() and not p.is_symlink() and p.stat().st_size)
    return [p.relative_to(root) for p in files if p.name not in UNREAD and "tensorboard" not in p.parts]


def damages(attack: Attack) -> Iterator[Callable[[], None]]:
    """Each file of each kind of run in each way, again and again."""
    stopped = [(kind, place) for kind in HALVED for place in files_of(attack.half(kind))]
    finished = [(CACHED, place) for place in files_of(attack.root / f"whole {CACHED}") if place.suffix != ".pth"]
    for number in itertools.count():
        for trial, how in enumerate(DAMAGE, 10 * number):
            yield from (partial(attack.damage, kind, place, how, trial) for kind, place in stopped)
            if number % 3 == 0:
                yield from (partial(attack.damage_finished, kind, place, how, trial) for kind, place in finished)


def attack_all(attack: Attack, jobs: int, kills: int, damaged: int, inputs: int) -> None:
    """As many of each as asked for, mixed, until the time is over."""
    with ThreadPoolExecutor(jobs) as pool:
        if kills or damaged:
            list(pool.map(attack.reference, KINDS))
            list(pool.map(attack.half, HALVED))
        chains = zip(itertools.cycle(KINDS), itertools.count(), strict=False)

        def chain(_: int) -> None:
            """Chains until there are enough kills."""
            while attack.killed < kills and time.monotonic() < attack.until:
                with attack.lock:
                    kind, number = next(chains)
                attack.kill(kind, number)

        def one(case: Callable[[], None]) -> None:
            if time.monotonic() < attack.until:
                case()

        cases = attack.inputs()
        chosen = cases if inputs >= len(cases) else random.Random(attack.seed).sample(cases, inputs)
        list(pool.map(chain, range(jobs)))
        list(pool.map(one, itertools.islice(damages(attack), damaged)))
        list(pool.map(one, (partial(attack.wrong, case) for case in chosen)))


def main(argv: Sequence[str] | None = None) -> int:
    parser = ScriptParser(description=__doc__)
    add = parser.add_argument
    add("--kills", type=int, default=500, help="number of kills")
    add("--damaged", type=int, default=300, help="number of damaged files")
    add("--inputs", type=int, default=10**6, help="number of inputs (default: all)")
    add("--minutes", type=float, default=60, help="start no new case after this many minutes")
    add("--jobs", type=int, default=2, help="number of parallel cases")
    add("--seed", type=int, default=0, help="random seed")
    add("--out", type=Path, help="also write the counts to this file", metavar="FILE")
    add("--append", action="store_true", help="add the counts to those in --out, so that parts can run one by one")
    args = parser.parse_args(argv)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        commands = [Commands(Path(tempfile.mkdtemp(dir=folder))) for _ in range(args.jobs)]
        attack = Attack(Path(folder), commands, args.seed, started + 60 * args.minutes)
        try:
            attack_all(attack, args.jobs, args.kills, args.damaged, args.inputs)
        finally:
            for one in commands:
                one.close()
    minutes = (time.monotonic() - started) / 60
    about = f"Made by `scripts/dev/attack.py`, seed {args.seed}, {minutes:.0f} minutes, {args.jobs} cases at a time."
    text = f"# Attack\n\n{about}\n\n{attack.report()}"
    print(text)
    if args.out:
        before = args.out.read_text() + "\n" if args.append and args.out.exists() else ""
        atomic_write_text(args.out, before + text)
    return int(bool(attack.examples))


if __name__ == "__main__":
    sys.exit(main())
