#!/usr/bin/env bash
# Function-Consistent Feature Distillation (Liu et al., ICLR 2023).
# CIFAR-100, resnet32x4 -> resnet8x4, 240 epochs.
# Published 76.62, with --optimizer nesterov.
# Not measured here at this length.
#   bash scripts/cifar100/methods/fcfd.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4 checkpoint}
shift
"$PYTHON" train_student.py --distill fcfd \
    -c 1 -d 1 -b 5 --fcfd_mixed 1 --fcfd_paths 2 --fcfd_warmup 20 \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4 --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
