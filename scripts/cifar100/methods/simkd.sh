#!/usr/bin/env bash
# Knowledge Distillation with the Reused Teacher Classifier (Chen et al., CVPR 2022).
# CIFAR-100, resnet32x4 -> resnet8x4, 240 epochs.
# Published 78.08 ± 0.15 (SimKD README). The student is larger at test time: projector and teacher's classifier stay.
# Not measured here at this length.
#   bash scripts/cifar100/methods/simkd.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4 checkpoint}
shift
"$PYTHON" train_student.py --distill simkd \
    -c 0 -d 0 -b 1 --factor 2 \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4 --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
