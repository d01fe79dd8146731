#!/usr/bin/env bash
# Teacher of HSAKD (Yang et al., IJCAI 2021), heads and backbone together.
# CIFAR-100, resnet32x4_aux, 240 epochs.
# Published 83.73 (HSAKD README).
# Not measured here at this length.
#   bash scripts/cifar100/methods/hsakd_teacher.sh [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
"$PYTHON" train_teacher.py --distill hsakd_teacher \
    --rotations 4 --nesterov \
    --dataset cifar100 --model resnet32x4_aux \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
