#!/usr/bin/env bash
# The second published row: TSN-Swin-B teaches TSN-ResNet50 on Kinetics-400, DIST on the scores of clips.
#   KINETICS=DIR GPUS=0,1,2,3,4,5,6,7 bash scripts/video/tsn_distil.sh TEACHER.pth [FLAGS]
# The published TEACHER.pth: bash scripts/teachers/fetch_teachers.sh tsn_swin_base, which prints its path.
# Recipe (mmaction2 projects/knowledge_distillation kd_logits_tsn-swin_tsn-r50_8xb16_k400): cross-entropy + 4 x DIST
# (beta = gamma = 1, tau 1), the rest as the student alone (32 clips a GPU, whatever the file's name says). Published
# top-1: 75.54 (+1.4; 25 frames, ten crops). Not measured here.
# Start of the student: torchvision's IMAGENET1K_V2 (resnet50-11ad3fa6.pth), the published one.
# The published teacher keeps dropout and drop path active; add --teacher_dropout for that.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
teacher=${1:?checkpoint of a TSN-Swin-B}
train train_student.py "${data[@]}" --path_t "$teacher" --model_t tsn_swin_base --model_s tsn_resnet50 \
    --distill dist --cls 1 --div 0 --beta 4 --dist_tau 1 --pretrained imagenet:IMAGENET1K_V2 \
    --batch_size 256 --epochs 100 --learning_rate 0.01 --lr_decay_epochs 40,80 --weight_decay 1e-4 --clip_grad 40 \
    --train_crop multiscale5 "${@:2}"
tested tsn_resnet50 --crops ten --num_segments 25
