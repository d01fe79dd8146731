#!/usr/bin/env python3
"""Train any method on CIFAR-100 with its authors' settings: python scripts/cifar100/method.py NAME [TEACHER.pth]

    python scripts/cifar100/method.py crd resnet32x4_best.pth --trial 1 --data_folder DIR
    python scripts/cifar100/method.py crd                  # prints the paper, its number and the command; runs nothing

240 epochs, resnet32x4 -> resnet8x4. methods.toml holds each method's published number and what differs from
`--protocol authors`; a method that is not in it is run with `--protocol authors` alone.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import ROOT
from core.protocols import UserError
from distiller_zoo import method_dict
from helper.machine.program import ScriptParser, run_script
from helper.options.listing import paper_of
from helper.tables.jobs import result_folder

PUBLISHED = tomllib.loads(Path(__file__).with_name("methods.toml").read_text())
CIFAR = (
    "--dataset cifar100 --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 "
    "--weight_decay 5e-4"
)
TEACHER, STUDENT = "resnet32x4", "resnet8x4"
AUXILIARY_ROOT = "save/auxiliary_teachers"


def student_command(settings: str, teacher: tuple[str, str] | None, student: str, flags: str) -> list[str]:
    path = ["--path_t", teacher[0], "--model_t", teacher[1]] if teacher else []
    return ["train_student.py", *shlex.split(settings), *path, "--model_s", student, *shlex.split(f"{CIFAR} {flags}")]


def commands(name: str, path_t: str = "TEACHER.pth") -> list[list[str]]:
    """[program, arguments...] of every run; all but the last train the teacher of the next, whose path is RESULT."""
    method, entry = method_dict[name], PUBLISHED.get(name, {})
    flags, student, teacher = entry.get("flags", ""), entry.get("student", STUDENT), entry.get("teacher", TEACHER)
    if "model" in entry:
        return [["train_teacher.py", *shlex.split(f"--distill {name} --model {entry['model']} {CIFAR} {flags}")]]
    settings = f"--distill {name} --protocol authors"
    if method.teacher_mode != "frozen":
        return [student_command(settings, None, student, flags)]
    if "auxiliary" not in entry:
        return [student_command(settings, (path_t, teacher), student, flags)]
    first = student_command(entry["auxiliary"], (path_t, TEACHER), teacher, f"--save_root {AUXILIARY_ROOT}")
    return [first, student_command(settings, (f"RESULT/{teacher}_best.pth", teacher), student, flags)]


def run_training(command: Sequence[str]) -> str:
    """Run a training and return the folder of its result, which its output names."""
    folder = ""
    program = [sys.executable, str(ROOT / command[0]), *command[1:]]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            folder = result_folder(line) or folder
    if process.returncode:
        sys.exit(process.returncode)
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    parser = ScriptParser(description=__doc__)
    parser.add_argument("method", help="a name of train_student.py --list methods")
    parser.add_argument("teacher", nargs="?", help="checkpoint of the teacher, for methods that have one")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="of training: --trial 1 --data_folder DIR")
    args = parser.parse_args(argv)
    flags = args.flags
    name = method_dict.resolve(args.method)
    frozen = method_dict[name].teacher_mode == "frozen"
    if args.teacher and not frozen:
        raise UserError(f"{name} needs no teacher: leave out {args.teacher}")
    if flags and frozen and not args.teacher:
        raise UserError(
            f"'{flags[0]}' comes before the teacher's checkpoint: type method.py {name} TEACHER.pth {flags[0]}"
        )
    runs = commands(name, args.teacher or "TEACHER.pth")
    paper = paper_of(method_dict[name])
    print(", ".join(filter(None, (paper["title"], paper["authors"], paper["venue"]))))
    print(PUBLISHED.get(name, {}).get("number", "No number is recorded.").strip())
    print("\n".join("python " + shlex.join([*run, *flags]) for run in runs), flush=True)
    if frozen and not args.teacher:
        return
    folder = ""
    for run in runs:
        folder = run_training([*(word.replace("RESULT/", f"{folder}/") for word in run), *flags])


if __name__ == "__main__":
    run_script(main)
