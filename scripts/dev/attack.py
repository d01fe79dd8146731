#!/usr/bin/env python3
"""Test whether runs lose or silently change results: python scripts/dev/attack.py --minutes 15 --out results/attack.md

  kills    runs of every kind are killed at random writes until they finish; they must equal a run that was left alone
  damage   one file that a run reads back is flipped, cut, zeroed or deleted; the run must end with the same numbers, or
           be refused in one sentence
  inputs   wrong files and settings, each with the words of the sentence expected

Prints counts by outcome; exit code 1 if a run lost something, differed silently, or ended in a traceback.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import atomic_write_text
from helper.networks.checkpoint import load_file
from tests.support.commands import Commands, Done

TIMING = ("seconds_", "img_per_s", "cache_hit_rate")
BRIEF = ("--epochs", 2, "--max_steps", 2, "--batch_size", 32, "--tb_backend", "none")
# kinds of runs -> flags behind those of train_student.py; None: train_teacher.py
KINDS: dict[str, tuple[object, ...] | None] = {
    "teacher": None,
    "kd": ("--distill", "kd"),
    "kd, teacher cache": ("--distill", "kd", "--teacher_cache", "CACHE"),
    "crd": ("--distill", "crd", "--nce_k", 16),
    "two stages (ab)": ("--distill", "ab", "--init_epochs", 1),
    "two students": ("--distill", "kd,at"),
    "average of weights": ("--distill", "kd", "--ema", 0.9),
}
DAMAGE = ("flip", "half", "zeros", "missing")
GOOD = ("same", "refused", "as expected")
KILLED = 137


class Attack:
    """Counts outcomes by (part, case). root: an empty folder. until: time.monotonic() at which no new case begins."""

    def __init__(self, root: Path, seed: int, until: float):
        self.root, self.rng, self.until = root, random.Random(seed), until
        self.commands = Commands(root)
        self.counts: dict[tuple[str, str], Counter[str]] = {}
        self.killed = 0
        self.examples: list[str] = []
        self.number = 0
        self.run(root / "t", None).finished()
        (self.teacher,) = (root / "t").rglob("resnet8_best.pth")
        self.whole: dict[str, dict[str, Any]] = {}

    def folder(self) -> Path:
        self.number += 1
        return self.root / str(self.number)

    def run(self, root: Path, flags: tuple[object, ...] | None, **hooks: object) -> Done:
        """One command, whose runs and caches lie below `root`."""
        if flags is None:
            return self.commands.teacher(*BRIEF, "--save_root", root, **hooks)
        argv = [root / "cache" if word == "CACHE" else word for word in flags]
        return self.commands.student("--path_t", self.teacher, *BRIEF, "--save_root", root, *argv, **hooks)

    def reference(self, kind: str) -> dict[str, Any]:
        """What a run of this kind comes to when it is left alone."""
        if kind not in self.whole:
            root = self.folder()
            self.run(root, KINDS[kind]).finished()
            self.whole[kind] = results(root)
        return self.whole[kind]

    def note(self, part: str, case: str, outcome: str, said: str = "") -> None:
        self.counts.setdefault((part, case), Counter())[outcome] += 1
        if outcome not in GOOD:
            self.examples.append(f"{part}, {case}: {outcome}. {said.strip()[-600:]}")

    def open(self) -> bool:
        return time.monotonic() < self.until

    def judge(self, done: Done, root: Path, kind: str) -> str:
        """same, refused, or what went wrong."""
        if "Traceback" in done.err + done.out:
            return "traceback"
        if done.code == 2 and len(done.err.strip().splitlines()) == 1:
            return "refused"
        if done.code:
            return f"exit code {done.code}"
        return "same" if results(root) == self.reference(kind) else "DIFFERENT"

    # ---- the parts

    def kill(self, kind: str) -> None:
        """One chain: killed at random writes, resumed, until it finishes."""
        root, done = self.folder(), None
        while done is None or done.code == KILLED:
            hook = {self.rng.choice(("fsync", "torn")): self.rng.randint(1, 12)}
            done = self.run(root, KINDS[kind], **hook)
            self.killed += done.code == KILLED
        outcome = self.judge(done, root, kind)
        self.note("kills", kind, "lost: refused" if outcome == "refused" else outcome, done.err)
        shutil.rmtree(root)

    def damage(self, name: str, how: str) -> None:
        """A run of a cached teacher, stopped after its first epoch; one of its files is damaged."""
        kind = "kd, teacher cache"
        base = self.root / "half"
        if not base.exists():
            self.reference(kind)
            self.run(base, KINDS[kind], signals=[[3, 15]])
        root = self.folder()
        shutil.copytree(base, root, symlinks=True)
        (path,) = (p for p in root.rglob(name) if p.is_file())
        spoil(path, how, self.rng)
        done = self.run(root, KINDS[kind])
        self.note("damage", f"{name}, {how}", self.judge(done, root, kind), done.err)
        shutil.rmtree(root)

    def wrong(self, case: str, script: str, argv: tuple[object, ...], words: str) -> None:
        done = self.commands(script, *argv)
        outcome = self.judge(done, self.root / "none", "teacher")
        said = words in " ".join(done.err.split())
        self.note(
            "inputs", case, "as expected" if outcome == "refused" and said else f"{outcome}, not {words!r}", done.err
        )

    def report(self) -> str:
        total = Counter[str]()
        lines = ["| part | case | trials | outcomes |", "|---|---|---|---|"]
        for (part, case), found in sorted(self.counts.items()):
            total.update({f"{part}: {k}": v for k, v in found.items()})
            outcomes = ", ".join(f"{v} {k}" for k, v in sorted(found.items()))
            lines.append(f"| {part} | {case.replace('|', '/')} | {sum(found.values())} | {outcomes} |")
        summary = [f"- {k}: {v}" for k, v in sorted(total.items())]
        faults = [f"- {' '.join(e.split())}" for e in self.examples]
        parts = [f"SIGKILLs: {self.killed}", "\n".join(summary), "\n".join(lines)]
        return "\n\n".join(parts + (["Faults:", "\n".join(faults)] if faults else [])) + "\n"


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


FILES = ("resnet8_last.pth", "args.json", "metrics.jsonl", "teacher_accuracy.json", "key.json")
FILES += ("logits.bin", "logits_sums.bin", "resnet8_best.pth", "env.json", "test_best_metrics.json")


def odd_files(teacher: Path, folder: Path) -> Iterator[tuple[str, Path, str]]:
    """(case, file, words of the sentence expected), of checkpoints that are none."""
    good = load_file(teacher)
    weights = good["model"]
    folder.mkdir()

    def write(case: str, content: Any, words: str) -> tuple[str, Path, str]:
        path = folder / f"{case.replace(' ', '_')}.pth"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        return case, path, words

    def with_weight(value: torch.Tensor) -> dict[str, Any]:
        return {"model": {**weights, "fc.weight": value}}

    whole = teacher.read_bytes()
    yield write("empty", b"", "it is empty")
    yield write("text", b"a text\n", "it starts with")
    yield write("cut", whole[: len(whole) // 2], "truncated or not a checkpoint")
    yield write("flipped", whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:], "does not match its checksum")
    yield write("a list", [1], "holds a list")
    yield write("no weights", {"epoch": 3}, "holds no weights")
    yield write("whole network", torch.nn.Linear(2, 2), "it needs torch.nn.modules.linear.Linear")
    yield write("several", {"a": weights, "b": weights}, "several sets of weights")
    yield write("infinite epoch", {"model": weights, "epoch": float("inf")}, "not a finite number")
    yield write("nan accuracy", {"model": weights, "best_acc": float("nan")}, "not a finite number")
    yield write("odd arch", {"model": weights, "meta": {"arch": 5}}, "meta.arch is a int")
    yield write("odd shapes", {"model": weights, "meta": {"shapes": [1]}}, "meta.shapes is a list")
    yield write("unknown arch", {"model": weights, "meta": {"arch": "resnet9"}}, "unknown model 'resnet9'")
    yield write("complex", with_weight(weights["fc.weight"] * 1j), "is complex")
    yield write("sparse", with_weight(weights["fc.weight"].to_sparse()), "is sparse")
    yield write("meta", with_weight(weights["fc.weight"].to("meta")), "on the meta device")
    yield write("nan", with_weight(weights["fc.weight"] * float("nan")), "holds NaN")
    yield write("too large", with_weight(torch.ones(1).expand(10**12)), "more memory than is free")
    yield write("another shape", with_weight(torch.ones(10, 7)), "of another shape")
    yield write("other classes", with_weight(torch.ones(7, 64)), "7 classes")
    yield write("another order", {**good, "meta": {**good["meta"], "classes": list("9876543210")}}, "another order")


def wrong_inputs(attack: Attack) -> Iterator[Callable[[], None]]:
    for case, path, words in odd_files(attack.teacher, attack.root / "odd"):
        named = () if "arch" in case or "order" in case else ("resnet8",)
        student = ("--dataset", "digits", "--model_s", "resnet8", "--path_t", path, *BRIEF, "--dry_run")
        student += tuple(word for name in named for word in ("--model_t", name))
        tested = ("--dataset", "digits", "--path", path, *(word for name in named for word in ("--model", name)))
        yield lambda a=student, c=case, w=words: attack.wrong(f"{c} as --path_t", "train_student.py", a, w)
        yield lambda a=tested, c=case, w=words: attack.wrong(f"{c} as --path", "test_model.py", a, w)
    for argv, words in SETTINGS:
        given = ("--dataset", "digits", "--model_s", "resnet8", "--path_t", attack.teacher, *BRIEF, "--dry_run", *argv)
        name = " ".join(map(str, argv))
        yield lambda a=given, n=name, w=words: attack.wrong(n, "train_student.py", a, w)


SETTINGS: tuple[tuple[tuple[object, ...], str], ...] = (
    (("--model_s", "resnet8x5"), "unknown model 'resnet8x5'"),
    (("--distill", "simkdd"), "unknown method 'simkdd'"),
    (("--dataset", "cifar10O"), "unknown data set 'cifar10O'"),
    (("--path_t", "nowhere.pth"), "No such file"),
    (("--path_t", "/dev/zero"), "is a pipe, a socket or a device"),
    (("--mean_t", "nan"), "--mean_t nan: give one finite number"),
    (("--std_t", 0), "must be above 0"),
    (("--std_t", 1, 1), "or one per channel"),
    (("--batch_size", 0), "--batch_size 0"),
    (("--learning_rate", "nan"), "--learning_rate nan"),
    (("--kd_T", 0), "--kd_T 0"),
    (("--val_fraction", 0.0001), "val_fraction 0.0001"),
    (("--few_ratio", 2), "--few_ratio 2.0"),
    (("--image_size", 10**5), "image_size is 100000"),
    (("--trial", "a/b"), "--trial 'a/b'"),
    (("--seed", -1), "the seed -1"),
)


def attack_all(attack: Attack) -> None:
    """Wrong inputs once each, kills and damage again and again, in turns until the time is over."""
    kills = itertools.cycle([partial(attack.kill, kind) for kind in KINDS])
    damage = itertools.cycle([partial(attack.damage, name, how) for how in DAMAGE for name in FILES])
    inputs = wrong_inputs(attack)
    while attack.open():
        for case in (next(kills), next(damage), next(inputs, None), next(damage), next(inputs, None)):
            if case is not None and attack.open():
                case()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=15, help="start no new case after this many minutes (default 15)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the counts to this file")
    args = parser.parse_args(argv)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        attack = Attack(Path(folder), args.seed, started + 60 * args.minutes)
        try:
            attack_all(attack)
        finally:
            attack.commands.close()
    minutes = (time.monotonic() - started) / 60
    text = f"# Attack\n\nMade by `scripts/dev/attack.py`, seed {args.seed}, {minutes:.0f} minutes.\n\n{attack.report()}"
    print(text)
    if args.out:
        atomic_write_text(args.out, text)
    return int(bool(attack.examples))


if __name__ == "__main__":
    sys.exit(main())
