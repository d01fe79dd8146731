#!/usr/bin/env bash
# Teacher of the first published row: TSM-ResNet50 on Kinetics-400, 8 uniform frames.
#   KINETICS=DIR GPUS=0,1,2,3,4,5,6,7 bash scripts/video/tsm_teacher.sh [FLAGS]
# Recipe (MMAction2 tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e): from ImageNet, SGD 0.9, rate 0.02 with classifier x5,
# decay 1e-4, gradient norm 20, warm-up of 5 epochs (there by iteration, here by epoch), drops at 25 and 45, 16 x 8 clips.
# Start: torchvision's IMAGENET1K_V1 (resnet50-0676ba61.pth), the published one.
# Published top-1: 73.18 (8 frames, ten crops). Not measured here. Two files are published, and both load (--path_t FILE --model_t
# tsm_resnet50): this recipe's, 20220831-64d69186, which the published distillation reads, and one of 100 epochs, 73.22,
# 20220831-a6db1e5d, which its table names and scripts/teachers/fetch_teachers.sh fetches.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
train train_teacher.py "${data[@]}" --model tsm_resnet50 --pretrained imagenet:IMAGENET1K_V1 --batch_size 128 --epochs 50 \
    --learning_rate 0.02 --lr_decay_epochs 25,45 --warmup_epochs 5 --warmup_start 0.1 --weight_decay 1e-4 --clip_grad 20 \
    --param_groups tsm_fc5 --train_crop multiscale13 "$@"
tested tsm_resnet50 --crops ten
