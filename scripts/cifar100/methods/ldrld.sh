#!/usr/bin/env bash
# Local Dense Logit Relations for Enhanced Knowledge Distillation (Xu et al., ICCV 2025).
# CIFAR-100, resnet32x4 -> resnet8x4, 240 epochs.
# Published 77.20, with the averaged local part and a learning rate that rises over 20 epochs.
# Not measured here at this length.
#   bash scripts/cifar100/methods/ldrld.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4 checkpoint}
shift
"$PYTHON" train_student.py --distill ldrld \
    -c 1 -d 0 -b 1 --ldrld_alpha 10.5 --ldrld_beta 7 --ldrld_d 7 --ldrld_T 4 --ldrld_as_published --warmup_epochs 20 \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4 --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
