#!/usr/bin/env bash
# Student of the second published row, alone: TSN-ResNet50 on Kinetics-400.
#   KINETICS=DIR GPUS=0,1,2,3,4,5,6,7 bash scripts/video/tsn_student.sh [FLAGS]
# Recipe (MMAction2 tsn_imagenet-pretrained-r50_8xb32-1x1x8-100e): from ImageNet, SGD 0.9, rate 0.01, decay 1e-4, gradient
# norm 40, no warm-up, drops at 40 and 80, 32 x 8 clips. Published top-1: 74.12 (25 frames, ten crops). Not measured here.
# Start: torchvision's IMAGENET1K_V2 (resnet50-11ad3fa6.pth), the published one.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
train train_student.py "${data[@]}" --model_s tsn_resnet50 --distill vanilla --pretrained imagenet:IMAGENET1K_V2 \
    --batch_size 256 --epochs 100 --learning_rate 0.01 --lr_decay_epochs 40,80 --weight_decay 1e-4 --clip_grad 40 \
    --train_crop multiscale5 "$@"
tested tsn_resnet50 --crops ten --num_segments 25
