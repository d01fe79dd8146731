#!/usr/bin/env bash
# Wasserstein Distance Rivals Kullback-Leibler Divergence for KD, features (Lv et al., NeurIPS 2024).
# CIFAR-100, resnet32x4 -> resnet8x4, 240 epochs.
# Published 76.77 (WKD README).
# Not measured here at this length.
#   bash scripts/cifar100/methods/wkd_f.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4 checkpoint}
shift
"$PYTHON" train_student.py --distill wkd_f \
    -c 1 -d 0 -b 0.08 --wkd_f_ratio 4 --wkd_f_grid 1 --wkd_f_projector conv1x1 --wkd_f_hidden 256 --wkd_f_constant 150 \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4 --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
