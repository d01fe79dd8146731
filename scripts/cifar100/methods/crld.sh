#!/usr/bin/env bash
# Cross-View Consistency Regularisation for Knowledge Distillation (Zhang et al., ACM MM 2024).
# CIFAR-100, resnet32x4 -> resnet8x4, 240 epochs.
# Published 77.60. Two views a sample: twice the images per step of most methods.
# Not measured here at this length.
#   bash scripts/cifar100/methods/crld.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4 checkpoint}
shift
"$PYTHON" train_student.py --distill crld \
    -c 1 -d 0 -b 1 --crld_within 2 --crld_across 0.5 --crld_tau_w 0.9 --crld_tau_s 0.2 --crld_T 4 \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4 --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
