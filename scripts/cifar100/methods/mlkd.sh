#!/usr/bin/env bash
# Multi-Level Logit Distillation (Jin et al., CVPR 2023).
# CIFAR-100, resnet32x4 -> resnet8x4, 240 epochs.
# Published 77.08 with 480 epochs; the settings released later, and here, take 240. Two views a sample: twice the
# images per step of every other method.
# Not measured here at this length.
#   bash scripts/cifar100/methods/mlkd.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4 checkpoint}
shift
"$PYTHON" train_student.py --distill mlkd \
    -c 0.1 -d 0 -b 0.9 --mlkd_views 2 --mlkd_halved --mlkd_weak_relations \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4 --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.025 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
