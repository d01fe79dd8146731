#!/usr/bin/env python3
"""Train a network on labels: python train_teacher.py --model resnet32x4 --dataset cifar100"""
# PYTHON_ARGCOMPLETE_OK

from helper.options import quick

if __name__ == "__main__":
    quick.answer("train_teacher.py")  # --help, without waiting for torch

from helper.machine.program import run_script
from train_student import main

if __name__ == "__main__":
    run_script(lambda argv: main(argv, is_teacher=True))
