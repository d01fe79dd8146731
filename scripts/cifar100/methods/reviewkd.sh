#!/usr/bin/env bash
# Distilling Knowledge via Knowledge Review (Chen et al., CVPR 2021).
# CIFAR-100, resnet32x4 -> resnet8x4, 240 epochs.
# Published 75.63 (table of the mdistiller toolbox).
# Not measured here at this length.
#   bash scripts/cifar100/methods/reviewkd.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4 checkpoint}
shift
"$PYTHON" train_student.py --distill reviewkd \
    -c 1 -d 0 -b 5 \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4 --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
