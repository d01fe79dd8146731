#!/usr/bin/env bash
# Improving Knowledge Distillation via Regularizing Feature Norm and Direction (Wang et al., 2023): KD++.
# CIFAR-100, resnet32x4 -> resnet8x4, 240 epochs.
# Published 75.54 (its README), with --optimizer nesterov, --learning_rate 0.1 and batches of 128.
# Not measured here at this length.
#   bash scripts/cifar100/methods/kdpp.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4 checkpoint}
shift
"$PYTHON" train_student.py --distill kdpp \
    -c 1 -d 3.5 -b 1 --kdpp_nd 2 --kdpp_dropout 0.5 --kdpp_warmup 20 \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4 --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
