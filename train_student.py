#!/usr/bin/env python3
"""Distil a student: python train_student.py --path_t TEACHER.pth --distill kd --model_s resnet8x4"""
# PYTHON_ARGCOMPLETE_OK

from helper.options import quick

if __name__ == "__main__":
    quick.answer("train_student.py")  # --help, without waiting for torch

from core.log import start_log
from helper import opening, session
from helper.machine.program import run_script
from helper.machine.stopper import Stopper, interrupted
from helper.options.parse import parse_students


def main(argv=None, is_teacher=False):
    start_log()
    trials = parse_students(argv, teacher=is_teacher)  # for each of --trials, the students to train together
    session.in_processes(trials[0][0], lambda: train_trials(trials))


def train_trials(trials):
    """A signal in the last epoch of a trial, which is completed, stops before the next one."""
    number = None
    for students in trials:
        if number:
            stop = interrupted(number, f"before trial {students[0].run.trial}")
            raise session.resumable(stop, students[0])
        number = train(students)


def train(students):
    """Train students that share a teacher and the order of the data; usually one. Returns the number of a signal that
    came too late to stop them."""
    start_log()
    shared = session.open_shared(students)  # device, data, loader, teacher
    # refuses what does not fit; writes nothing
    lanes = [session.build_lane(settings, shared) for settings in shared.lanes]
    if students[0].run.dry_run:
        return session.try_out(lanes, shared.loader)
    with Stopper().listening() as stopper:  # Ctrl-C and SIGTERM stop training at the next step
        entered = session.enter_folders(lanes, shared)  # those whose run is not finished yet
        if entered:
            teacher_accuracy = opening.teacher_accuracy(shared)
            try:
                session.fit(entered, shared, stopper)
            finally:
                session.finish(lanes, shared, teacher_accuracy)
        return stopper.asked()


if __name__ == "__main__":
    run_script(main)
