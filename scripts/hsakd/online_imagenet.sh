#!/usr/bin/env bash
# ImageNet, two ResNet18 teach each other (table 7).
# The published number is that of the better peer of every epoch; here both are reported.
#   bash scripts/hsakd/online_imagenet.sh                        lists the cells with the published top-1
#   bash scripts/hsakd/online_imagenet.sh NAME|REGEX [FLAG ...]  runs that cell, or those whose name matches; FLAGs are passed to its commands
# Published numbers are of the HSAKD repository (README, slides and poster of IJCAI 2021).
# None of these commands has been run to its end here: no number below is a measurement of this toolbox.
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"
cell 'ResNet18 Baseline' '69.75' python train_student.py --distill vanilla --model_s ResNet18 --dataset imagenet --epochs 100 --lr_decay_epochs 30,60,90 --batch_size 256 --learning_rate 0.1 --weight_decay 1e-4 --gpu_id 0,1,2,3,4,5,6,7 --multiprocessing_distributed --trial 0
cell 'ResNet18 Online' '71.49' python train_student.py --distill hsakd_online --model_s resnet18_imagenet_aux --dataset imagenet --epochs 100 --lr_decay_epochs 30,60,90 --batch_size 256 --learning_rate 0.1 --weight_decay 1e-4 --gpu_id 0,1,2,3,4,5,6,7 --multiprocessing_distributed --trial 0
