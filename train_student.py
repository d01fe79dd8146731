#!/usr/bin/env python3
"""Distil a student: python train_student.py --path_t TEACHER.pth --distill kd --model_s resnet8x4"""
# PYTHON_ARGCOMPLETE_OK

from helper.options import quick

if __name__ == "__main__":
    quick.answer("train_student.py")  # --help, without waiting for torch

from helper import session
from helper.machine.program import run_script
from helper.options.parse import parse_students


def main(argv=None, is_teacher=False):
    session.begin()
    trials = parse_students(argv, teacher=is_teacher)  # for each of --trials, the students to train together
    session.in_processes(trials[0][0], lambda: [train(students) for students in trials])


def train(students):
    """Train students that share a teacher and the order of the data; usually one."""
    session.begin()
    shared = session.open_shared(students)  # device, data, loader, teacher
    lanes = [
        session.build_lane(settings, shared) for settings in shared.lanes
    ]  # refuses what does not fit; writes nothing
    if students[0].run.dry_run:
        return session.try_out(lanes, shared.loader)
    with session.listening() as stopper:
        entered = session.enter_folders(lanes, shared)  # those whose run is not finished yet
        if not entered:
            return
        teacher_accuracy = session.measure_teacher(shared)
        try:
            session.fit(entered, shared, stopper)
        finally:
            session.finish(lanes, shared, teacher_accuracy)


if __name__ == "__main__":
    run_script(main)
