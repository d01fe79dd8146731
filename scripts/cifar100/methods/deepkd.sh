#!/usr/bin/env bash
# DeepKD: A Deeply Decoupled and Denoised Knowledge Distillation Trainer (Huang et al., NeurIPS 2025).
# CIFAR-100, resnet32x4 -> resnet8x4, 240 epochs.
# Published settings of its KD form; its figures for this pair are those of other forms (79.15, 79.25).
# Not measured here at this length.
#   bash scripts/cifar100/methods/deepkd.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4 checkpoint}
shift
"$PYTHON" train_student.py --distill deepkd \
    -c 0.5 -d 0 -b 1 --deepkd_form kd --deepkd_task 0.075 --deepkd_target -0.075 --deepkd_other 0.075 \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4 --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
