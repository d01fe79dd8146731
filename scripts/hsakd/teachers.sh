#!/usr/bin/env bash
# Teachers of the CIFAR-100 tables: Teacher (heads on a frozen backbone) and Teacher* (trained together).
# A Teacher keeps the accuracy of its backbone, which the paper takes from the checkpoints of CRD and SSKD.
#   bash scripts/hsakd/teachers.sh                        lists the cells with the published top-1
#   bash scripts/hsakd/teachers.sh NAME|REGEX [FLAG ...]  runs that cell, or those whose name matches; FLAGs are passed to its commands
# Published numbers are of the HSAKD repository (README, slides and poster of IJCAI 2021).
# None of these commands has been run to its end here: no number below is a measurement of this toolbox.
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"
cell 'WRN-40-2 backbone' '76.45' python train_teacher.py --model wrn_40_2 --dataset cifar100 --nesterov --trial 0
cell 'WRN-40-2 Teacher' '76.45' python train_teacher.py --model wrn_40_2_aux --distill hsakd_teacher --freeze_backbone --pretrained_backbone save/teachers/models/wrn_40_2_vanilla_cifar100_trial_0_nesterov:True/wrn_40_2_best.pth --dataset cifar100 --nesterov --epochs 100 --lr_decay_epochs 30,60,90 --trial 0
cell 'WRN-40-2 Teacher*' '80.70' python train_teacher.py --model wrn_40_2_aux --distill hsakd_teacher --dataset cifar100 --nesterov --trial 1
cell 'ResNet56 backbone' '73.44' python train_teacher.py --model resnet56 --dataset cifar100 --nesterov --trial 0
cell 'ResNet56 Teacher' '73.44' python train_teacher.py --model resnet56_aux --distill hsakd_teacher --freeze_backbone --pretrained_backbone save/teachers/models/resnet56_vanilla_cifar100_trial_0_nesterov:True/resnet56_best.pth --dataset cifar100 --nesterov --epochs 100 --lr_decay_epochs 30,60,90 --trial 0
cell 'ResNet56 Teacher*' '77.20' python train_teacher.py --model resnet56_aux --distill hsakd_teacher --dataset cifar100 --nesterov --trial 1
cell 'ResNet32x4 backbone' '79.63' python train_teacher.py --model resnet32x4 --dataset cifar100 --nesterov --trial 0
cell 'ResNet32x4 Teacher' '79.63' python train_teacher.py --model resnet32x4_aux --distill hsakd_teacher --freeze_backbone --pretrained_backbone save/teachers/models/resnet32x4_vanilla_cifar100_trial_0_nesterov:True/resnet32x4_best.pth --dataset cifar100 --nesterov --epochs 100 --lr_decay_epochs 30,60,90 --trial 0
cell 'ResNet32x4 Teacher*' '83.73' python train_teacher.py --model resnet32x4_aux --distill hsakd_teacher --dataset cifar100 --nesterov --trial 1
cell 'VGG13 backbone' '74.64' python train_teacher.py --model vgg13 --dataset cifar100 --nesterov --trial 0
cell 'VGG13 Teacher' '74.64' python train_teacher.py --model vgg13_bn_aux --distill hsakd_teacher --freeze_backbone --pretrained_backbone save/teachers/models/vgg13_vanilla_cifar100_trial_0_nesterov:True/vgg13_best.pth --dataset cifar100 --nesterov --epochs 100 --lr_decay_epochs 30,60,90 --trial 0
cell 'VGG13 Teacher*' '78.48' python train_teacher.py --model vgg13_bn_aux --distill hsakd_teacher --dataset cifar100 --nesterov --trial 1
cell 'ResNet50 backbone' '79.34' python train_teacher.py --model ResNet50 --dataset cifar100 --nesterov --trial 0
cell 'ResNet50 Teacher' '79.34' python train_teacher.py --model ResNet50_aux --distill hsakd_teacher --freeze_backbone --pretrained_backbone save/teachers/models/ResNet50_vanilla_cifar100_trial_0_nesterov:True/ResNet50_best.pth --dataset cifar100 --nesterov --epochs 100 --lr_decay_epochs 30,60,90 --trial 0
cell 'ResNet50 Teacher*' '83.85' python train_teacher.py --model ResNet50_aux --distill hsakd_teacher --dataset cifar100 --nesterov --trial 1
