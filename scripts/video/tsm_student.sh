#!/usr/bin/env bash
# Student of the first published row, alone: TSM-MobileNetV2 on Kinetics-400.
#   KINETICS=DIR GPUS=0,1,2,3,4,5,6,7 bash scripts/video/tsm_student.sh [FLAGS]
# Recipe (MMAction2 tsm_imagenet-pretrained-mobilenetv2_8xb16-1x1x8-100e): from ImageNet, SGD 0.9, rate 0.02 with
# classifier x5, decay 2e-5, gradient norm 20, no warm-up, drops at 40 and 80, 16 x 8 clips. Published top-1: 68.71 (three
# crops of 256). Not measured here.
# Start: torchvision's IMAGENET1K_V1. The published start is OpenMMLab's own training of the same network, a file of
# mmclassification (mobilenet_v2_batch256_imagenet_20200708-3b2dc3af.pth); fetched by hand, --pretrained FILE takes it.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
train train_student.py "${data[@]}" --model_s tsm_mobilenetv2 --distill vanilla --pretrained imagenet:IMAGENET1K_V1 \
    --batch_size 128 --epochs 100 --learning_rate 0.02 --lr_decay_epochs 40,80 --weight_decay 2e-5 --clip_grad 20 \
    --param_groups tsm_fc5 --train_crop multiscale13 "$@"
tested tsm_mobilenetv2 --crops three --crop_size 256
