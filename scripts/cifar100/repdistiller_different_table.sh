#!/usr/bin/env bash
# RepDistiller's table, teacher and student of different families: one command per cell. `run_table.py --write` made it of tables/repdistiller_different.toml.
#   source     README of RepDistiller (Tian et al., CRD, ICLR 2020)
#   protocol   CIFAR-100, crop and flip, one view; 240 epochs, batch 64, SGD 0.05 (0.01 for mobile and shuffle nets) times 0.1 after 150, 180, 210; weight decay 5e-4
#   published  top-1 in percent; epoch: last epoch; number of runs: not stated in the README
#   cost       PFLOP of the two networks, the method's own layers and first stage, without losses and memory
#              banks; hours are for the published toolboxes on one RTX 2080 Ti: a wall-clock where they print
#              one, else an estimate, PFLOP / 9 TFLOP/s but at least 1.1 h for 240 epochs
# All of it, on all GPUs, skipping what is finished: bash scripts/run_table.sh repdistiller_different --trials 3
# Teachers: vgg13 (74.64), ResNet50 (79.34), resnet32x4 (79.42), wrn_40_2 (75.61); bash scripts/teachers/fetch_teachers.sh or bash scripts/teachers/train_teachers.sh
#   bash scripts/cifar100/repdistiller_different_table.sh [flags of training, such as --data_folder ../data/]
extra=("$@")
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
python() { run_or_skip "$@" ${extra[@]+"${extra[@]}"}; }

# ---- vgg13 -> MobileNetV2
# student alone: 64.60; 0.5 PFLOP, about 1.1 h
python train_student.py --distill vanilla --model_s MobileNetV2 --dataset cifar100 --trial 0
# KD: 67.37; 7.3 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill kd -r 0.1 -a 0.9 -b 0 --model_s MobileNetV2 --dataset cifar100 --trial 0
# FitNet: 64.14; 7.3 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill hint -r 1 -a 0 -b 100 --hint_layer 2 --model_s MobileNetV2 --dataset cifar100 --trial 0
# AT: 59.40; 7.3 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill attention -r 1 -a 0 -b 1000 --model_s MobileNetV2 --dataset cifar100 --trial 0
# SP: 66.30; 7.3 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill similarity -r 1 -a 0 -b 3000 --model_s MobileNetV2 --dataset cifar100 --trial 0
# CC: 64.86; 7.3 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill correlation -r 1 -a 0 -b 0.02 --model_s MobileNetV2 --dataset cifar100 --trial 0
# VID: 65.56; 9.4 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill vid -r 1 -a 0 -b 1 --model_s MobileNetV2 --dataset cifar100 --trial 0
# RKD: 64.52; 7.3 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill rkd -r 1 -a 0 -b 1 --model_s MobileNetV2 --dataset cifar100 --trial 0
# PKT: 67.13; 7.3 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill pkt -r 1 -a 0 -b 30000 --model_s MobileNetV2 --dataset cifar100 --trial 0
# AB: 66.06; 8.3 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill abound -r 1 -a 0 -b 1 --init_epochs 30 --model_s MobileNetV2 --dataset cifar100 --trial 0
# FT: 61.78; 11.2 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill factor -r 1 -a 0 -b 200 --init_epochs 30 --model_s MobileNetV2 --dataset cifar100 --trial 0
# NST: 58.16; 7.3 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill nst -r 1 -a 0 -b 50 --model_s MobileNetV2 --dataset cifar100 --trial 0
# CRD: 69.73; 7.3 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill crd -r 1 -a 0 -b 0.8 --model_s MobileNetV2 --dataset cifar100 --trial 0

# ---- ResNet50 -> MobileNetV2
# KD: 67.35; 31.6 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill kd -r 0.1 -a 0.9 -b 0 --model_s MobileNetV2 --dataset cifar100 --trial 0
# FitNet: 63.16; 32.2 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill hint -r 1 -a 0 -b 100 --hint_layer 2 --model_s MobileNetV2 --dataset cifar100 --trial 0
# AT: 58.58; 31.6 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill attention -r 1 -a 0 -b 1000 --model_s MobileNetV2 --dataset cifar100 --trial 0
# SP: 68.08; 31.6 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill similarity -r 1 -a 0 -b 3000 --model_s MobileNetV2 --dataset cifar100 --trial 0
# CC: 65.43; 31.6 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill correlation -r 1 -a 0 -b 0.02 --model_s MobileNetV2 --dataset cifar100 --trial 0
# VID: 67.57; 41.5 PFLOP, about 1.3 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill vid -r 1 -a 0 -b 1 --model_s MobileNetV2 --dataset cifar100 --trial 0
# RKD: 64.43; 31.6 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill rkd -r 1 -a 0 -b 1 --model_s MobileNetV2 --dataset cifar100 --trial 0
# PKT: 66.52; 31.6 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill pkt -r 1 -a 0 -b 30000 --model_s MobileNetV2 --dataset cifar100 --trial 0
# AB: 67.20; 36.1 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill abound -r 1 -a 0 -b 1 --init_epochs 30 --model_s MobileNetV2 --dataset cifar100 --trial 0
# FT: 60.99; 81.3 PFLOP, about 2.5 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill factor -r 1 -a 0 -b 200 --init_epochs 30 --model_s MobileNetV2 --dataset cifar100 --trial 0
# NST: 64.96; 31.6 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill nst -r 1 -a 0 -b 50 --model_s MobileNetV2 --dataset cifar100 --trial 0
# CRD: 69.11; 31.6 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill crd -r 1 -a 0 -b 0.8 --model_s MobileNetV2 --dataset cifar100 --trial 0

# ---- ResNet50 -> vgg8
# student alone: 70.36; 6.9 PFLOP, about 1.1 h
python train_student.py --distill vanilla --model_s vgg8 --dataset cifar100 --trial 0
# KD: 73.81; 38.1 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill kd -r 0.1 -a 0.9 -b 0 --model_s vgg8 --dataset cifar100 --trial 0
# FitNet: 70.69; 47.7 PFLOP, about 1.5 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill hint -r 1 -a 0 -b 100 --hint_layer 2 --model_s vgg8 --dataset cifar100 --trial 0
# AT: 71.84; 38.1 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill attention -r 1 -a 0 -b 1000 --model_s vgg8 --dataset cifar100 --trial 0
# SP: 73.34; 38.1 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill similarity -r 1 -a 0 -b 3000 --model_s vgg8 --dataset cifar100 --trial 0
# CC: 70.25; 38.1 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill correlation -r 1 -a 0 -b 0.02 --model_s vgg8 --dataset cifar100 --trial 0
# VID: 70.30; 58.0 PFLOP, about 1.8 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill vid -r 1 -a 0 -b 1 --model_s vgg8 --dataset cifar100 --trial 0
# RKD: 71.50; 38.1 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill rkd -r 1 -a 0 -b 1 --model_s vgg8 --dataset cifar100 --trial 0
# PKT: 73.01; 38.1 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill pkt -r 1 -a 0 -b 30000 --model_s vgg8 --dataset cifar100 --trial 0
# AB: 70.65; 46.6 PFLOP, about 1.4 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill abound -r 1 -a 0 -b 1 --init_epochs 30 --model_s vgg8 --dataset cifar100 --trial 0
# FT: 70.29; 103.9 PFLOP, about 3.2 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill factor -r 1 -a 0 -b 200 --init_epochs 30 --model_s vgg8 --dataset cifar100 --trial 0
# NST: 71.28; 38.1 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill nst -r 1 -a 0 -b 50 --model_s vgg8 --dataset cifar100 --trial 0
# CRD: 74.30; 38.1 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/ResNet50_vanilla/ResNet50_best.pth --distill crd -r 1 -a 0 -b 0.8 --model_s vgg8 --dataset cifar100 --trial 0

# ---- resnet32x4 -> ShuffleV1
# student alone: 70.50; 2.8 PFLOP, about 1.1 h
python train_student.py --distill vanilla --model_s ShuffleV1 --dataset cifar100 --trial 0
# KD: 74.07; 28.8 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill kd -r 0.1 -a 0.9 -b 0 --model_s ShuffleV1 --dataset cifar100 --trial 0
# FitNet: 73.59; 33.3 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill hint -r 1 -a 0 -b 100 --hint_layer 2 --model_s ShuffleV1 --dataset cifar100 --trial 0
# AT: 71.73; 28.8 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill attention -r 1 -a 0 -b 1000 --model_s ShuffleV1 --dataset cifar100 --trial 0
# SP: 73.48; 28.8 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill similarity -r 1 -a 0 -b 3000 --model_s ShuffleV1 --dataset cifar100 --trial 0
# CC: 71.14; 28.8 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill correlation -r 1 -a 0 -b 0.02 --model_s ShuffleV1 --dataset cifar100 --trial 0
# VID: 73.38; 30.1 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill vid -r 1 -a 0 -b 1 --model_s ShuffleV1 --dataset cifar100 --trial 0
# RKD: 72.28; 28.8 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill rkd -r 1 -a 0 -b 1 --model_s ShuffleV1 --dataset cifar100 --trial 0
# PKT: 74.10; 28.8 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill pkt -r 1 -a 0 -b 30000 --model_s ShuffleV1 --dataset cifar100 --trial 0
# AB: 73.55; 34.1 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill abound -r 1 -a 0 -b 1 --init_epochs 30 --model_s ShuffleV1 --dataset cifar100 --trial 0
# FT: 71.75; 45.8 PFLOP, about 1.4 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill factor -r 1 -a 0 -b 200 --init_epochs 30 --model_s ShuffleV1 --dataset cifar100 --trial 0
# NST: 74.12; 28.8 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill nst -r 1 -a 0 -b 50 --model_s ShuffleV1 --dataset cifar100 --trial 0
# CRD: 75.11; 28.8 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill crd -r 1 -a 0 -b 0.8 --model_s ShuffleV1 --dataset cifar100 --trial 0

# ---- resnet32x4 -> ShuffleV2
# student alone: 71.82; 3.2 PFLOP, about 1.1 h
python train_student.py --distill vanilla --model_s ShuffleV2 --dataset cifar100 --trial 0
# KD: 74.45; 29.2 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill kd -r 0.1 -a 0.9 -b 0 --model_s ShuffleV2 --dataset cifar100 --trial 0
# FitNet: 73.54; 31.4 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill hint -r 1 -a 0 -b 100 --hint_layer 2 --model_s ShuffleV2 --dataset cifar100 --trial 0
# AT: 72.73; 29.2 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill attention -r 1 -a 0 -b 1000 --model_s ShuffleV2 --dataset cifar100 --trial 0
# SP: 74.56; 29.2 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill similarity -r 1 -a 0 -b 3000 --model_s ShuffleV2 --dataset cifar100 --trial 0
# CC: 71.29; 29.2 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill correlation -r 1 -a 0 -b 0.02 --model_s ShuffleV2 --dataset cifar100 --trial 0
# VID: 73.40; 30.1 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill vid -r 1 -a 0 -b 1 --model_s ShuffleV2 --dataset cifar100 --trial 0
# RKD: 73.21; 29.2 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill rkd -r 1 -a 0 -b 1 --model_s ShuffleV2 --dataset cifar100 --trial 0
# PKT: 74.69; 29.2 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill pkt -r 1 -a 0 -b 30000 --model_s ShuffleV2 --dataset cifar100 --trial 0
# AB: 74.31; 33.7 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill abound -r 1 -a 0 -b 1 --init_epochs 30 --model_s ShuffleV2 --dataset cifar100 --trial 0
# FT: 72.50; 38.3 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill factor -r 1 -a 0 -b 200 --init_epochs 30 --model_s ShuffleV2 --dataset cifar100 --trial 0
# NST: 74.68; 29.2 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill nst -r 1 -a 0 -b 50 --model_s ShuffleV2 --dataset cifar100 --trial 0
# CRD: 75.65; 29.2 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill crd -r 1 -a 0 -b 0.8 --model_s ShuffleV2 --dataset cifar100 --trial 0

# ---- wrn_40_2 -> ShuffleV1
# KD: 74.83; 10.6 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill kd -r 0.1 -a 0.9 -b 0 --model_s ShuffleV1 --dataset cifar100 --trial 0
# FitNet: 73.73; 12.9 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill hint -r 1 -a 0 -b 100 --hint_layer 2 --model_s ShuffleV1 --dataset cifar100 --trial 0
# AT: 73.32; 10.6 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill attention -r 1 -a 0 -b 1000 --model_s ShuffleV1 --dataset cifar100 --trial 0
# SP: 74.52; 10.6 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill similarity -r 1 -a 0 -b 3000 --model_s ShuffleV1 --dataset cifar100 --trial 0
# CC: 71.38; 10.7 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill correlation -r 1 -a 0 -b 0.02 --model_s ShuffleV1 --dataset cifar100 --trial 0
# VID: 73.61; 11.2 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill vid -r 1 -a 0 -b 1 --model_s ShuffleV1 --dataset cifar100 --trial 0
# RKD: 72.21; 10.6 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill rkd -r 1 -a 0 -b 1 --model_s ShuffleV1 --dataset cifar100 --trial 0
# PKT: 73.89; 10.6 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill pkt -r 1 -a 0 -b 30000 --model_s ShuffleV1 --dataset cifar100 --trial 0
# AB: 73.34; 12.8 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill abound -r 1 -a 0 -b 1 --init_epochs 30 --model_s ShuffleV1 --dataset cifar100 --trial 0
# FT: 72.03; 22.6 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill factor -r 1 -a 0 -b 200 --init_epochs 30 --model_s ShuffleV1 --dataset cifar100 --trial 0
# NST: 74.89; 10.6 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill nst -r 1 -a 0 -b 50 --model_s ShuffleV1 --dataset cifar100 --trial 0
# CRD: 76.05; 10.7 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill crd -r 1 -a 0 -b 0.8 --model_s ShuffleV1 --dataset cifar100 --trial 0
