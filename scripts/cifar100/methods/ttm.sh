#!/usr/bin/env bash
# Knowledge Distillation Based on Transformed Teacher Matching (Zheng and Yang, ICLR 2024), TTM.
# CIFAR-100, resnet32x4 -> resnet8x4, 240 epochs.
# Published 76.17 (TTM README). It gives no settings for this pair: these are those of vgg13 -> vgg8.
# Not measured here at this length.
#   bash scripts/cifar100/methods/ttm.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4 checkpoint}
shift
"$PYTHON" train_student.py --distill ttm \
    -c 1 -d 0 -b 45 --ttm_gamma 0.1 \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4 --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
