#!/usr/bin/env bash
# SEED: Self-supervised Distillation For Visual Representation (Fang et al., ICLR 2021).
# CIFAR-100, resnet32x4 -> resnet8x4, 240 epochs.
# No number is published for CIFAR-100. No classifier is trained: try the features with eval_rep.py.
# Not measured here at this length.
#   bash scripts/cifar100/methods/queue.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4 checkpoint}
shift
"$PYTHON" train_student.py --distill queue \
    -c 0 -d 0 -b 1 --queue_size 0 --queue_T 0.07 --queue_local 1 \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4 --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
