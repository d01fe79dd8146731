#!/usr/bin/env bash
# Cross-Architecture Knowledge Distillation (Liu et al., ACCV 2022).
# CIFAR-100, vit_tiny_cifar -> resnet8x4, 240 epochs. The teacher is a transformer (scripts/cakd/teacher.sh).
# Published for ViT-B/16 -> ResNet50 on images scaled up (87.39, alone 85.02), and for no pair of this size.
# Not measured here at this length. Without --clip_grad, which is ours, its first steps diverge at this rate.
#   bash scripts/cifar100/methods/cakd.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a vit_tiny_cifar checkpoint}
shift
"$PYTHON" train_student.py --distill cakd \
    -c 1 -d 0 -b 1 --cakd_variant paper \
    --dataset cifar100 --path_t "$teacher" --model_t vit_tiny_cifar --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 \
    --clip_grad 5 "$@"
