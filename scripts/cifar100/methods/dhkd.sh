#!/usr/bin/env bash
# Dual-Head Knowledge Distillation (Yang et al., 2024).
# CIFAR-100, resnet32x4 -> resnet8x4, 240 epochs.
# Published nothing for this pair that could be had; settings are those of resnet32x4 -> ShuffleV2.
# Not measured here at this length.
#   bash scripts/cifar100/methods/dhkd.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4 checkpoint}
shift
"$PYTHON" train_student.py --distill dhkd \
    -c 1 -d 0 -b 1 --dhkd_T 2 --dhkd_head mlp \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4 --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
