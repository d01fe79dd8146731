#!/usr/bin/env bash
# DPCD (wsh081, code 2025).
# CIFAR-100, resnet32x4_aux_dpcd -> resnet8x4_aux_dpcd, 240 epochs.
# Published 77.42 (DPCD README), by settings of beta its code notes for this teacher.
# Not measured here at this length.
#   bash scripts/cifar100/methods/dpcd.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4_aux_dpcd checkpoint}
shift
"$PYTHON" train_student.py --distill dpcd \
    -c 1 -d 0 -b 1 --dpcd_as_published --dpcd_beta_min 6 --dpcd_beta_max 10 --nesterov \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4_aux_dpcd --model_s resnet8x4_aux_dpcd \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
