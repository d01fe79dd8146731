#!/usr/bin/env bash
# Scaled Decoupled Distillation (Wei et al., CVPR 2024), SD-KD.
# CIFAR-100, resnet32x4 -> resnet8x4, 240 epochs.
# Published 75.45 (mean of the two runs in the comments of the authors' script).
# Not measured here at this length.
#   bash scripts/cifar100/methods/sdd.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4 checkpoint}
shift
"$PYTHON" train_student.py --distill sdd \
    -c 0.1 -d 0 -b 0.9 --sdd_base kd --sdd_scales 1 2 --sdd_T 4 \
    --sdd_alpha 1 --sdd_beta 8 --sdd_gamma 8 --sdd_warmup 0 \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4 --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
