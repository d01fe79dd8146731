#!/usr/bin/env bash
# Deep Mutual Learning (Zhang et al., CVPR 2018).
# CIFAR-100, two resnet8x4, 240 epochs.
# No number was published for this pair.
# Not measured here at this length.
#   bash scripts/cifar100/methods/dml.sh [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
"$PYTHON" train_student.py --distill dml \
    -c 1 -d 1 --kd_T 1 \
    --dataset cifar100 --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
