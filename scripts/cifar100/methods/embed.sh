#!/usr/bin/env bash
# Contrastive Learning Rivals Masked Image Modeling via Feature Distillation (Wei et al., arXiv 2022).
# CIFAR-100, resnet32x4 -> resnet8x4, 240 epochs.
# No number is published for CIFAR-100; the paper distils ImageNet transformers.
# Not measured here at this length.
#   bash scripts/cifar100/methods/embed.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4 checkpoint}
shift
"$PYTHON" train_student.py --distill embed \
    -c 1 -d 0 -b 1 --embed_loss cosine --embed_projector linear --embed_hidden 0 \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4 --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
