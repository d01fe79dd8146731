#!/usr/bin/env bash
# Teacher of DPCD (wsh081, code 2025).
# CIFAR-100, resnet32x4_aux_dpcd, 240 epochs.
# The accuracy of its teachers is not published.
# Not measured here at this length.
#   bash scripts/cifar100/methods/dpcd_teacher.sh [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
"$PYTHON" train_teacher.py --distill dpcd_teacher \
    --nesterov \
    --dataset cifar100 --model resnet32x4_aux_dpcd \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
