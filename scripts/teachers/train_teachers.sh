#!/usr/bin/env bash
# Every teacher of the published tables, with the published recipe: CIFAR-100, 240 epochs, batch 64, SGD 0.05 times 0.1 after
# 150, 180 and 210, weight decay 5e-4. Finished runs are skipped; interrupted ones resume.
#   bash scripts/teachers/train_teachers.sh [flags of train_teacher.py, such as --data_folder ../data/ --gpu_id 1]
# Above each command: the accuracy the tables print for this teacher, and the arithmetic of the run. Each command leaves
# save/teachers/models/NAME_vanilla/NAME_best.pth, where the students' commands look. If another experiment already has that
# name, a notice names the command that changes it. A longer run takes over the name of a shorter one.
# The SimKD toolbox prints 2:24 h for resnet32x4 on one RTX 2080 Ti.
extra=("$@")
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
python() { run_or_skip "$@" ${extra[@]+"${extra[@]}"}; }

# vgg13: 74.64; 20.5 PFLOP
python train_teacher.py --model vgg13 --dataset cifar100 --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 --trial 0
# ResNet50: 79.34; 93.5 PFLOP
python train_teacher.py --model ResNet50 --dataset cifar100 --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 --trial 0
# resnet32x4: 79.42; 78.0 PFLOP
python train_teacher.py --model resnet32x4 --dataset cifar100 --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 --trial 0
# wrn_40_2: 75.61; 23.6 PFLOP
python train_teacher.py --model wrn_40_2 --dataset cifar100 --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 --trial 0
# resnet56: 72.34; 9.1 PFLOP
python train_teacher.py --model resnet56 --dataset cifar100 --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 --trial 0
# resnet110: 74.31; 18.2 PFLOP
python train_teacher.py --model resnet110 --dataset cifar100 --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 --trial 0
