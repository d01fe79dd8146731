#!/usr/bin/env bash
# Understanding the Role of the Projector in Knowledge Distillation (Miles and Mikolajczyk, AAAI 2024).
# CIFAR-100, resnet32x4 -> resnet8x4, 240 epochs.
# No number is published for CIFAR-100; settings are those of ImageNet, resnet34 -> resnet18.
# Not measured here at this length.
#   bash scripts/cifar100/methods/srd.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4 checkpoint}
shift
"$PYTHON" train_student.py --distill srd \
    -c 1 -d 1 -b 1 --kd_T 1 --srd_exponent 4 \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4 --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
