#!/usr/bin/env bash
# Teacher of the second published row: TSN-Swin-B on Kinetics-400, 8 uniform frames.
#   KINETICS=DIR GPUS=0,1,2,3,4,5,6,7 bash scripts/video/tsn_teacher.sh [FLAGS]
# Recipe (MMAction2 tsn_imagenet-pretrained-swin-base, 50 epochs): from ImageNet, SGD 0.9, rate 0.01, decay 1e-4, gradient
# norm 40, no warm-up, drops at 20 and 40, 32 x 8 clips. Published top-1: 79.22. Not measured here. Their file loads too.
# Start: torchvision's IMAGENET1K_V1 of Swin-B; the published one is timm's swin_base_patch4_window7_224, which
# --pretrained FILE takes.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
train train_teacher.py "${data[@]}" --model tsn_swin_base --pretrained imagenet:IMAGENET1K_V1 --batch_size 256 --epochs 50 \
    --learning_rate 0.01 --lr_decay_epochs 20,40 --weight_decay 1e-4 --clip_grad 40 --train_crop multiscale5 "$@"
tested tsn_swin_base --crops ten --num_segments 25
