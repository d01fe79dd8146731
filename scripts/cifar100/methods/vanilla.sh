#!/usr/bin/env bash
# The student alone: cross-entropy.
# CIFAR-100, resnet8x4, 240 epochs.
# Published 72.50 (RepDistiller README, last epoch), 73.09 ± 0.30 (SimKD README).
# Not measured here at this length.
#   bash scripts/cifar100/methods/vanilla.sh [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
"$PYTHON" train_student.py --distill vanilla \
    -c 1 \
    --dataset cifar100 --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
