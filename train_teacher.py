#!/usr/bin/env python3
"""Train a network on labels alone: python train_teacher.py --model resnet32x4 --dataset cifar100"""

from helper.machine.program import run_script
from helper.session import train


def main(argv=None):
    train(argv, is_teacher=True)


if __name__ == "__main__":
    run_script(main)
