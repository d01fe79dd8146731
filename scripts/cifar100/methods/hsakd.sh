#!/usr/bin/env bash
# Hierarchical Self-supervised Augmented KD (Yang et al., IJCAI 2021).
# CIFAR-100, resnet32x4_aux -> resnet8x4_aux, 240 epochs.
# Published 77.69 ± 0.05 with this teacher, 77.26 ± 0.14 with heads on a frozen one (HSAKD README).
# Not measured here at this length.
#   bash scripts/cifar100/methods/hsakd.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4_aux checkpoint}
shift
"$PYTHON" train_student.py --distill hsakd \
    -c 1 -d 1 -b 1 --kd_T 3 --rotations 4 --nesterov \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4_aux --model_s resnet8x4_aux \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
