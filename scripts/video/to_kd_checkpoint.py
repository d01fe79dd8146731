#!/usr/bin/env python3
"""Write a distillation checkpoint in MMRazor's layout: python scripts/video/to_kd_checkpoint.py STUDENT TEACHER OUT

Keys are OpenMMLab's; those of the student begin with `architecture.`, those of the teacher with `teacher.`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from core.files import atomic_save
from core.protocols import UserError
from helper.machine.program import ScriptParser, run_script
from helper.networks.checkpoint import read_checkpoint
from helper.networks.load import load_network
from models._video_keys import to_openmmlab
from models.temporal import family_of


def openmmlab_weights(path):
    network = load_network(path, None, None, {})
    family = family_of(network.spec)
    if family is None:
        raise UserError(f"{path} is a {network.spec.name}, for which OpenMMLab has no names")
    return to_openmmlab(family, network.model.state_dict())


def main(argv=None):
    parser = ScriptParser(description=__doc__)
    parser.add_argument("student", type=Path, help="checkpoint of the student")
    parser.add_argument("teacher", type=Path, help="checkpoint of the teacher")
    parser.add_argument("out", type=Path, help="file to write")
    args = parser.parse_args(argv)
    student, teacher = openmmlab_weights(args.student), openmmlab_weights(args.teacher)
    state = {f"architecture.{k}": v for k, v in student.items()} | {f"teacher.{k}": v for k, v in teacher.items()}
    atomic_save({"meta": {"epoch": read_checkpoint(args.student).epoch}, "state_dict": state}, args.out)
    print(f"{args.out}: {len(student)} weights of the student, {len(teacher)} of the teacher")


if __name__ == "__main__":
    run_script(main)
