#!/usr/bin/env bash
# Wasserstein Distance Rivals Kullback-Leibler Divergence for KD (Lv et al., NeurIPS 2024), WKD-L.
# CIFAR-100, resnet32x4 -> resnet8x4, 240 epochs.
# Published 76.53 (WKD README), with class distances of the teacher's features, which scripts/class_distances.py writes:
# add --wkd_l_cost FILE for these. Without it they come from the classifier.
# Not measured here at this length.
#   bash scripts/cifar100/methods/wkd_l.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4 checkpoint}
shift
"$PYTHON" train_student.py --distill wkd_l \
    -c 1 -d 0 -b 600 --wkd_l_target 1 --wkd_l_T 8 --wkd_l_kappa 1 --wkd_l_constant 150 --wkd_l_cost classifier \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4 --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
