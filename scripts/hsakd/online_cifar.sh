#!/usr/bin/env bash
# CIFAR-100, two peers teach each other (table 6).
# The published number is that of the better peer of every epoch; here both are reported.
#   bash scripts/hsakd/online_cifar.sh                        lists the cells with the published top-1
#   bash scripts/hsakd/online_cifar.sh NAME|REGEX [FLAG ...]  runs that cell, or those whose name matches; FLAGs are passed to its commands
# Published numbers are of the HSAKD repository (README, slides and poster of IJCAI 2021).
# None of these commands has been run to its end here: no number below is a measurement of this toolbox.
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"
cell 'WRN-40-2 Baseline' '76.44±.20' python train_student.py --distill vanilla --model_s wrn_40_2 --dataset cifar100 --nesterov --trial 0
cell 'WRN-40-2 Online' '82.58±.21' python train_student.py --distill hsakd_online --model_s wrn_40_2_aux --dataset cifar100 --nesterov --trial 0
cell 'WRN-40-1 Baseline' '71.95±.59' python train_student.py --distill vanilla --model_s wrn_40_1 --dataset cifar100 --nesterov --trial 0
cell 'WRN-40-1 Online' '76.67±.41' python train_student.py --distill hsakd_online --model_s wrn_40_1_aux --dataset cifar100 --nesterov --trial 0
cell 'ResNet56 Baseline' '73.00±.17' python train_student.py --distill vanilla --model_s resnet56 --dataset cifar100 --nesterov --trial 0
cell 'ResNet56 Online' '78.16±.56' python train_student.py --distill hsakd_online --model_s resnet56_aux --dataset cifar100 --nesterov --trial 0
cell 'ResNet32x4 Baseline' '79.56±.23' python train_student.py --distill vanilla --model_s resnet32x4 --dataset cifar100 --nesterov --trial 0
cell 'ResNet32x4 Online' '84.91±.19' python train_student.py --distill hsakd_online --model_s resnet32x4_aux --dataset cifar100 --nesterov --trial 0
cell 'VGG13 Baseline' '75.35±.21' python train_student.py --distill vanilla --model_s vgg13 --dataset cifar100 --nesterov --trial 0
cell 'VGG13 Online' '80.44±.05' python train_student.py --distill hsakd_online --model_s vgg13_bn_aux --dataset cifar100 --nesterov --trial 0
cell 'MobileNetV2 Baseline' '73.51±.26' python train_student.py --distill vanilla --model_s mobilenetV2 --dataset cifar100 --nesterov --trial 0
cell 'MobileNetV2 Online' '78.85±.13' python train_student.py --distill hsakd_online --model_s mobilenetV2_aux --dataset cifar100 --nesterov --trial 0
cell 'ShuffleNetV1 Baseline' '71.74±.35' python train_student.py --distill vanilla --model_s ShuffleV1 --dataset cifar100 --nesterov --trial 0
cell 'ShuffleNetV1 Online' '78.34±.03' python train_student.py --distill hsakd_online --model_s ShuffleV1_aux --dataset cifar100 --nesterov --trial 0
cell 'ShuffleNetV2 Baseline' '72.96±.33' python train_student.py --distill vanilla --model_s ShuffleV2 --dataset cifar100 --nesterov --trial 0
cell 'ShuffleNetV2 Online' '79.98±.12' python train_student.py --distill hsakd_online --model_s ShuffleV2_aux --dataset cifar100 --nesterov --trial 0
