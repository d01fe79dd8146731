#!/usr/bin/env bash
# HSAKD between two peers (Yang et al., IJCAI 2021).
# CIFAR-100, two resnet8x4_aux, 240 epochs.
# Published 84.91 ± 0.19 for two resnet32x4_aux, the better of both in every epoch (HSAKD README).
# Not measured here at this length.
#   bash scripts/cifar100/methods/hsakd_online.sh [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
"$PYTHON" train_student.py --distill hsakd_online \
    -c 1 -d 1 -b 1 --kd_T 3 --rotations 4 --nesterov \
    --dataset cifar100 --model_s resnet8x4_aux \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
