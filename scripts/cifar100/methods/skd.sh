#!/usr/bin/env bash
# Streamlined Knowledge Distillation (authors of HyunJunSik/StreamLined, CVPR 2026).
# CIFAR-100, resnet32x4 -> resnet8x4, 240 epochs.
# Published 78.33 with a weak and a strong copy of every image, learning rate 0.1 and a teacher of their own. This is
# the common recipe.
# Not measured here at this length.
#   bash scripts/cifar100/methods/skd.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4 checkpoint}
shift
"$PYTHON" train_student.py --distill skd \
    -c 0.5 -d 0 -b 0.5 --skd_kl 0.5 --skd_direction 0.5 --skd_ridge 0.1 --skd_T 4 \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4 --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
