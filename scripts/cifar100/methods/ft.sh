#!/usr/bin/env bash
# Factor Transfer (Kim et al., NeurIPS 2018).
# CIFAR-100, resnet32x4 -> resnet8x4, 240 epochs.
# Published 72.86 (RepDistiller README, last epoch, no logit KL). Thirty epochs of the first stage come before the
# 240.
# Not measured here at this length.
#   bash scripts/cifar100/methods/ft.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4 checkpoint}
shift
"$PYTHON" train_student.py --distill factor \
    -c 1 -d 0 -b 200 --init_epochs 30 \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4 --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
