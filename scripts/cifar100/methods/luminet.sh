#!/usr/bin/env bash
# LumiNet: Perception-Driven Knowledge Distillation via Statistical Logit Calibration (Hossain et al., TMLR 2025).
# CIFAR-100, resnet32x4 -> resnet8x4, 240 epochs.
# Published 77.50 (LumiNet README).
# Not measured here at this length.
#   bash scripts/cifar100/methods/luminet.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4 checkpoint}
shift
"$PYTHON" train_student.py --distill luminet \
    -c 2 -d 0 -b 1 --luminet_alpha 33 --luminet_T 4 --luminet_warmup 20 \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4 --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
