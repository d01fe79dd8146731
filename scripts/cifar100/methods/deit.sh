#!/usr/bin/env bash
# Training data-efficient image transformers (Touvron et al., ICML 2021): a distillation token.
# CIFAR-100, resnet32x4 -> vit_tiny_cifar_distilled, 240 epochs.
# Published on ImageNet alone, with weights of 0.5 each.
# Not measured here at this length.
#   bash scripts/cifar100/methods/deit.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4 checkpoint}
shift
"$PYTHON" train_student.py --distill deit \
    -c 0.5 -d 0 -b 0.5 --deit_kind hard \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4 --model_s vit_tiny_cifar_distilled \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
