"""Commands with a wrong number, choice or path, each with words of the sentence expected: what attack.py tries.

They come from the parsers themselves, so that a new flag is tried without being listed here. Wrong files and settings
that need a case of their own are in tests/.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from distiller_zoo import method_dict
from helper.options.method_flags import flags_of
from helper.options.settings import TrainStudentConfigs, common_flags

BRIEF = ("--epochs", 2, "--max_steps", 2, "--batch_size", 32, "--image_size", 8, "--tb_backend", "none")
NUMBERS: dict[Any, tuple[str, ...]] = {
    int: ("-1", "0", str(10**30), "x", ""),
    float: ("nan", "inf", "-1", "0", "1e300", "x", ""),
}
PERHAPS = ("-1", "0", "1e300")  # numbers that some settings accept
PATHS = ("missing", "folder", "zero", "cut", "foreign", "fifo", "device")
READ = ("path", "path_t", "s_path", "file", "sources", "train_list", "test_list", "root", "data_folder", "data")
WRITTEN = ("out", "json", "csv", "report", "show", "out_path", "study")


@dataclass(frozen=True)
class Wrong:
    """words: of the sentence. may_run: whether the value may also be accepted."""

    case: str
    script: str
    argv: tuple[object, ...]
    words: str
    may_run: bool = False


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser that a script's main() makes."""
    found: list[argparse.ArgumentParser] = []

    def capture(parser: argparse.ArgumentParser, *_: Any) -> None:
        found.append(parser)
        raise SystemExit

    with mock.patch.object(argparse.ArgumentParser, "parse_args", capture), contextlib.suppress(SystemExit):
        importlib.import_module(module).main([])
    return found[0]


def bad_paths(folder: Path, suffix: str) -> dict[str, Path]:
    """What a path may name instead of the file that is meant."""
    folder.mkdir(exist_ok=True)
    paths = {kind: folder / f"{kind}{suffix}" for kind in PATHS}
    paths["folder"].mkdir(exist_ok=True)
    paths["zero"].write_bytes(b"")
    paths["cut"].write_bytes(b"PK\x03\x04" + bytes(50))
    paths["foreign"].write_bytes(bytes(range(256)) * 9)
    if not paths["fifo"].exists():
        os.mkfifo(paths["fifo"])
    return paths | {"device": Path("/dev/zero")}


@dataclass(frozen=True)
class Known:
    """What the commands need to be right but for one thing. root: where files may be written. runs: a root of finished
    ones. other: a finished run that is not the teacher's."""

    root: Path
    teacher: Path
    runs: Path
    other: Path

    @property
    def student(self) -> tuple[object, ...]:
        return ("--dataset", "digits", "--model_s", "resnet8", "--path_t", self.teacher, *BRIEF, "--dry_run")

    def scripts(self) -> dict[str, tuple[object, ...]]:
        """Module -> a command line that it accepts."""
        out, model = self.root / "out", ("--path", self.teacher)
        return {
            "test_model": (*model, "--dataset", "digits"),
            "eval_rep": ("--s_path", self.teacher, "--dataset", "digits", "--epochs", 1, "--image_size", 8),
            "predict": (self.root / "picture.png", *model),
            "scripts.export_student": (*model, "--out", out, "--forms", "safetensors"),
            "scripts.plot": ("reliability", *model, "--out", self.root / "a.png"),
            "scripts.make_table": ("--root", self.runs),
            "scripts.report": ("--root", self.runs, "--out", self.root / "r.html"),
            "scripts.compare": (self.teacher.parent, self.other),
            "scripts.cakd.robustness": (*model, "--dataset", "digits"),
            "scripts.class_distances": ("--path_t", self.teacher, "--dataset", "digits", "--out", self.root / "d.pt"),
            "scripts.convert_kd_ckpt_to_student": (self.teacher, "--out_path", self.root),
            "scripts.teachers.fetch_teachers": ("--list",),
            "scripts.tune": ("--search", "kd_T=1:4", "--study", self.root / "study", "--", *self.student),
        }


def settings(known: Known) -> Iterator[Wrong]:
    """Numbers, choices and paths of train_student.py, and numbers of every method."""
    for flag in common_flags(TrainStudentConfigs):
        words = flag.dest if flag.dest in ("seed", "trials") else flag.names[0]
        yield from _tried("train_student.py", known.student, flag, words, known.root)
    for name in method_dict:
        for flag in flags_of(method_dict[name]):
            for value in NUMBERS.get(flag.type, ())[:-2]:
                may_run = value in PERHAPS  # or the method refuses the networks first
                argv = (*known.student, "--distill", name, flag.names[0], value)
                words = "" if may_run else flag.names[0]
                yield Wrong(f"{flag.names[0]} {value!r}", "train_student.py", argv, words, may_run)


def parsers(known: Known) -> Iterator[Wrong]:
    """Numbers, choices and paths of the other scripts."""
    for module, argv in known.scripts().items():
        actions = list(parser_of(module)._actions)
        for action in actions:
            if isinstance(action, argparse._SubParsersAction):
                actions += action.choices[str(argv[0])]._actions
        for action in actions:
            if action.option_strings and action.nargs != 0:
                script = module.replace(".", "/") + ".py"
                yield from _tried(script, argv, action, action.option_strings[0].lstrip("-"), known.root)


def _tried(script: str, argv: tuple[object, ...], flag: Any, words: str, root: Path) -> Iterator[Wrong]:
    """flag: a Flag, or an action of argparse. words: of the sentence on a wrong number."""
    name = flag.option_strings[0] if isinstance(flag, argparse.Action) else flag.names[0]
    cut = argv.index("--") if "--" in argv else len(argv)

    def wrong(value: object, words: str, may_run: bool = False, case: str = "") -> Wrong:
        command = (*argv[:cut], f"{name}={value}", *argv[cut:])
        return Wrong(f"{script} {name} {case or repr(value)}", script, command, words, may_run)

    for value in NUMBERS.get(flag.type, ()):
        may_run = value in PERHAPS
        yield wrong(value, "" if may_run and "tune" in script else words, may_run)  # its trials are dry runs here
    if flag.choices:
        yield wrong("misspelt", "misspelt")
    for kind, path in bad_paths(root / "paths", ".pth").items() if flag.dest in READ else ():
        yield wrong(path, "", may_run=True, case=kind)
    if flag.dest in WRITTEN:
        yield wrong("/proc/none/x.png", "/proc/none", may_run=True, case="in no folder")


def every(known: Known) -> list[Wrong]:
    """All cases; makes the files that they name."""
    from PIL import Image

    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(known.root / "picture.png")
    return [*parsers(known), *settings(known)]
