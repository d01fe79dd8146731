#!/usr/bin/env python3
"""Train a teacher, or any network alone: python train_teacher.py --model resnet32x4"""

from helper.machine.program import run_script
from train_student import main

if __name__ == "__main__":
    run_script(lambda argv: main(argv, is_teacher=True))
