#!/usr/bin/env python3
"""Distil a student: python train_student.py --path_t TEACHER.pth --distill kd --model_s resnet8x4"""
# PYTHON_ARGCOMPLETE_OK

from helper.options import quick

if __name__ == "__main__":
    quick.answer("train_student.py")  # --help, without waiting for torch

from helper.machine.program import run_script
from helper.session import train


def main(argv=None):
    train(argv, is_teacher=False)


if __name__ == "__main__":
    run_script(main)
