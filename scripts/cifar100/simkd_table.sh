#!/usr/bin/env bash
# SimKD's table: one command per cell. `run_table.py --write` made it of tables/simkd.toml.
#   source     README of the SimKD toolbox (Chen et al., CVPR 2022)
#   protocol   CIFAR-100, crop and flip, one view; 240 epochs, batch 64, SGD 0.05 (0.01 for mobile and shuffle nets) times 0.1 after 150, 180, 210; weight decay 5e-4
#   published  top-1 in percent; epoch: not stated; its script keeps the best epoch on test; number of runs: not stated in the README
#   cost       PFLOP of the two networks, the method's own layers and first stage, without losses and memory
#              banks; hours are for the published toolboxes on one RTX 2080 Ti: a wall-clock where they print
#              one, else an estimate, PFLOP / 9 TFLOP/s but at least 1.1 h for 240 epochs
# All of it, on all GPUs, skipping what is finished: bash scripts/run_table.sh simkd --trials 3
# Teachers: resnet32x4 (79.42); bash scripts/teachers/fetch_teachers.sh or bash scripts/teachers/train_teachers.sh
#   bash scripts/cifar100/simkd_table.sh [flags of training, such as --data_folder ../data/]
extra=("$@")
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
python() { run_or_skip "$@" ${extra[@]+"${extra[@]}"}; }

# ---- resnet32x4 -> resnet8x4
# student alone: 73.09; 12.7 PFLOP, 1:05 h by their clock
python train_student.py --distill vanilla --model_s resnet8x4 --dataset cifar100 --trial 0
# KD: 74.42; 38.7 PFLOP, 1:12 h by their clock
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill kd -c 1 -d 1 -b 0 --model_s resnet8x4 --dataset cifar100 --trial 0
# FitNet: 74.32; 39.0 PFLOP, 1:16 h by their clock
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill hint -c 1 -d 1 -b 100 --model_s resnet8x4 --dataset cifar100 --trial 0
# AT: 75.07; 38.7 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill attention -c 1 -d 1 -b 1000 --model_s resnet8x4 --dataset cifar100 --trial 0
# SP: 74.29; 38.7 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill similarity -c 1 -d 1 -b 3000 --model_s resnet8x4 --dataset cifar100 --trial 0
# VID: 74.55; 41.5 PFLOP, about 1.3 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill vid -c 1 -d 1 -b 1 --model_s resnet8x4 --dataset cifar100 --trial 0
# CRD: 75.59; 38.7 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill crd -c 1 -d 1 -b 0.8 --model_s resnet8x4 --dataset cifar100 --trial 0
# SRRL: 75.39; 38.7 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill srrl -c 1 -d 1 -b 1 --model_s resnet8x4 --dataset cifar100 --trial 0
# SemCKD: 76.23; 118.1 PFLOP, 2:55 h by their clock
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill semckd -c 1 -d 1 -b 400 --model_s resnet8x4 --dataset cifar100 --trial 0
# SimKD (f=8): 76.73; 38.9 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill simkd -c 0 -d 0 -b 1 -f 8 --model_s resnet8x4 --dataset cifar100 --trial 0
# SimKD (f=4): 77.88; 39.1 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill simkd -c 0 -d 0 -b 1 -f 4 --model_s resnet8x4 --dataset cifar100 --trial 0
# SimKD (f=2): 78.08; 39.7 PFLOP, 1:24 h by their clock
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill simkd -c 0 -d 0 -b 1 -f 2 --model_s resnet8x4 --dataset cifar100 --trial 0

# ---- resnet32x4 -> vgg8
# student alone: 70.46; 6.9 PFLOP, about 1.1 h
python train_student.py --distill vanilla --model_s vgg8 --dataset cifar100 --trial 0
# KD: 72.73; 32.9 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill kd -c 1 -d 1 -b 0 --model_s vgg8 --dataset cifar100 --trial 0
# FitNet: 72.91; 35.3 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill hint -c 1 -d 1 -b 100 --model_s vgg8 --dataset cifar100 --trial 0
# AT: 71.90; 32.9 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill attention -c 1 -d 1 -b 1000 --model_s vgg8 --dataset cifar100 --trial 0
# SP: 73.12; 32.9 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill similarity -c 1 -d 1 -b 3000 --model_s vgg8 --dataset cifar100 --trial 0
# VID: 73.19; 33.8 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill vid -c 1 -d 1 -b 1 --model_s vgg8 --dataset cifar100 --trial 0
# CRD: 73.54; 32.9 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill crd -c 1 -d 1 -b 0.8 --model_s vgg8 --dataset cifar100 --trial 0
# SRRL: 73.23; 32.9 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill srrl -c 1 -d 1 -b 1 --model_s vgg8 --dataset cifar100 --trial 0
# SemCKD: 75.27; 85.1 PFLOP, about 2.6 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill semckd -c 1 -d 1 -b 400 --model_s vgg8 --dataset cifar100 --trial 0
# SimKD (f=8): 74.74; 33.0 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill simkd -c 0 -d 0 -b 1 -f 8 --model_s vgg8 --dataset cifar100 --trial 0
# SimKD (f=4): 75.62; 33.0 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill simkd -c 0 -d 0 -b 1 -f 4 --model_s vgg8 --dataset cifar100 --trial 0
# SimKD (f=2): 75.76; 33.2 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill simkd -c 0 -d 0 -b 1 -f 2 --model_s vgg8 --dataset cifar100 --trial 0

# ---- resnet32x4 -> ShuffleV2_1_5
# student alone: 74.15; 6.8 PFLOP, about 1.1 h
python train_student.py --distill vanilla --model_s ShuffleV2_1_5 --dataset cifar100 --trial 0
# KD: 76.82; 32.7 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill kd -c 1 -d 1 -b 0 --model_s ShuffleV2_1_5 --dataset cifar100 --trial 0
# FitNet: 77.12; 36.1 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill hint -c 1 -d 1 -b 100 --model_s ShuffleV2_1_5 --dataset cifar100 --trial 0
# AT: 77.51; 32.7 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill attention -c 1 -d 1 -b 1000 --model_s ShuffleV2_1_5 --dataset cifar100 --trial 0
# SP: 77.18; 32.7 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill similarity -c 1 -d 1 -b 3000 --model_s ShuffleV2_1_5 --dataset cifar100 --trial 0
# VID: 77.11; 33.8 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill vid -c 1 -d 1 -b 1 --model_s ShuffleV2_1_5 --dataset cifar100 --trial 0
# CRD: 77.66; 32.8 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill crd -c 1 -d 1 -b 0.8 --model_s ShuffleV2_1_5 --dataset cifar100 --trial 0
# SRRL: 77.55; 32.8 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill srrl -c 1 -d 1 -b 1 --model_s ShuffleV2_1_5 --dataset cifar100 --trial 0
# SemCKD: 79.13; 81.8 PFLOP, about 2.5 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill semckd -c 1 -d 1 -b 400 --model_s ShuffleV2_1_5 --dataset cifar100 --trial 0
# SimKD (f=8): 78.96; 32.8 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill simkd -c 0 -d 0 -b 1 -f 8 --model_s ShuffleV2_1_5 --dataset cifar100 --trial 0
# SimKD (f=4): 79.48; 32.9 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill simkd -c 0 -d 0 -b 1 -f 4 --model_s ShuffleV2_1_5 --dataset cifar100 --trial 0
# SimKD (f=2): 79.54; 33.1 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill simkd -c 0 -d 0 -b 1 -f 2 --model_s ShuffleV2_1_5 --dataset cifar100 --trial 0
