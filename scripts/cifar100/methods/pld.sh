#!/usr/bin/env bash
# PLD: A Choice-Theoretic List-Wise Knowledge Distillation (Bassam et al., NeurIPS 2025).
# CIFAR-100, resnet32x4 -> resnet8x4, 240 epochs.
# Published 73.97 ± 0.05 under a recipe of its own: AdamW, 1e-3, cosine, weight decay 0.5, batches of 128, 250 epochs
# (kd there: 72.11). This is the common recipe.
# Not measured here at this length.
#   bash scripts/cifar100/methods/pld.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4 checkpoint}
shift
"$PYTHON" train_student.py --distill pld \
    -c 0 -d 0 -b 1 --pld_tau 4 \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4 --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
