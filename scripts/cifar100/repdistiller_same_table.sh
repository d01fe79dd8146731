#!/usr/bin/env bash
# RepDistiller's table, teacher and student of one family: one command per cell. `run_table.py --write` made it of tables/repdistiller_same.toml.
#   source     README of RepDistiller (Tian et al., CRD, ICLR 2020)
#   protocol   CIFAR-100, crop and flip, one view; 240 epochs, batch 64, SGD 0.05 (0.01 for mobile and shuffle nets) times 0.1 after 150, 180, 210; weight decay 5e-4
#   published  top-1 in percent; epoch: last epoch; number of runs: not stated in the README
#   cost       PFLOP of the two networks, the method's own layers and first stage, without losses and memory
#              banks; hours are for the published toolboxes on one RTX 2080 Ti: a wall-clock where they print
#              one, else an estimate, PFLOP / 9 TFLOP/s but at least 1.1 h for 240 epochs
# All of it, on all GPUs, skipping what is finished: bash scripts/run_table.sh repdistiller_same --trials 3
# Teachers: wrn_40_2 (75.61), resnet56 (72.34), resnet110 (74.31), resnet32x4 (79.42), vgg13 (74.64); bash scripts/teachers/fetch_teachers.sh or bash scripts/teachers/train_teachers.sh
#   bash scripts/cifar100/repdistiller_same_table.sh [flags of training, such as --data_folder ../data/]
extra=("$@")
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
python() { run_or_skip "$@" ${extra[@]+"${extra[@]}"}; }

# ---- wrn_40_2 -> wrn_16_2
# student alone: 73.26; 7.3 PFLOP, about 1.1 h
python train_student.py --distill vanilla --model_s wrn_16_2 --dataset cifar100 --trial 0
# KD: 74.92; 15.1 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill kd -r 0.1 -a 0.9 -b 0 --model_s wrn_16_2 --dataset cifar100 --trial 0
# FitNet: 73.58; 15.2 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill hint -r 1 -a 0 -b 100 --hint_layer 2 --model_s wrn_16_2 --dataset cifar100 --trial 0
# AT: 74.08; 15.1 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill attention -r 1 -a 0 -b 1000 --model_s wrn_16_2 --dataset cifar100 --trial 0
# SP: 73.83; 15.1 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill similarity -r 1 -a 0 -b 3000 --model_s wrn_16_2 --dataset cifar100 --trial 0
# CC: 73.56; 15.1 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill correlation -r 1 -a 0 -b 0.02 --model_s wrn_16_2 --dataset cifar100 --trial 0
# VID: 74.11; 15.8 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill vid -r 1 -a 0 -b 1 --model_s wrn_16_2 --dataset cifar100 --trial 0
# RKD: 73.35; 15.1 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill rkd -r 1 -a 0 -b 1 --model_s wrn_16_2 --dataset cifar100 --trial 0
# PKT: 74.54; 15.1 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill pkt -r 1 -a 0 -b 30000 --model_s wrn_16_2 --dataset cifar100 --trial 0
# AB: 72.50; 17.0 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill abound -r 1 -a 0 -b 1 --init_epochs 30 --model_s wrn_16_2 --dataset cifar100 --trial 0
# FT: 73.25; 18.3 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill factor -r 1 -a 0 -b 200 --init_epochs 30 --model_s wrn_16_2 --dataset cifar100 --trial 0
# FSP: 72.91; 17.0 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill fsp -r 1 -a 0 -b 50 --init_epochs 30 --model_s wrn_16_2 --dataset cifar100 --trial 0
# NST: 73.68; 15.1 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill nst -r 1 -a 0 -b 50 --model_s wrn_16_2 --dataset cifar100 --trial 0
# CRD: 75.48; 15.1 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill crd -r 1 -a 0 -b 0.8 --model_s wrn_16_2 --dataset cifar100 --trial 0

# ---- wrn_40_2 -> wrn_40_1
# student alone: 71.98; 6.0 PFLOP, about 1.1 h
python train_student.py --distill vanilla --model_s wrn_40_1 --dataset cifar100 --trial 0
# KD: 73.54; 13.9 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill kd -r 0.1 -a 0.9 -b 0 --model_s wrn_40_1 --dataset cifar100 --trial 0
# FitNet: 72.24; 13.9 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill hint -r 1 -a 0 -b 100 --hint_layer 2 --model_s wrn_40_1 --dataset cifar100 --trial 0
# AT: 72.77; 13.9 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill attention -r 1 -a 0 -b 1000 --model_s wrn_40_1 --dataset cifar100 --trial 0
# SP: 72.43; 13.9 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill similarity -r 1 -a 0 -b 3000 --model_s wrn_40_1 --dataset cifar100 --trial 0
# CC: 72.21; 13.9 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill correlation -r 1 -a 0 -b 0.02 --model_s wrn_40_1 --dataset cifar100 --trial 0
# VID: 73.30; 14.4 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill vid -r 1 -a 0 -b 1 --model_s wrn_40_1 --dataset cifar100 --trial 0
# RKD: 72.22; 13.9 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill rkd -r 1 -a 0 -b 1 --model_s wrn_40_1 --dataset cifar100 --trial 0
# PKT: 73.45; 13.9 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill pkt -r 1 -a 0 -b 30000 --model_s wrn_40_1 --dataset cifar100 --trial 0
# AB: 72.38; 15.6 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill abound -r 1 -a 0 -b 1 --init_epochs 30 --model_s wrn_40_1 --dataset cifar100 --trial 0
# FT: 71.59; 16.3 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill factor -r 1 -a 0 -b 200 --init_epochs 30 --model_s wrn_40_1 --dataset cifar100 --trial 0
# NST: 72.24; 13.9 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill nst -r 1 -a 0 -b 50 --model_s wrn_40_1 --dataset cifar100 --trial 0
# CRD: 74.14; 13.9 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/wrn_40_2_vanilla/wrn_40_2_best.pth --distill crd -r 1 -a 0 -b 0.8 --model_s wrn_40_1 --dataset cifar100 --trial 0

# ---- resnet56 -> resnet20
# student alone: 69.06; 2.9 PFLOP, about 1.1 h
python train_student.py --distill vanilla --model_s resnet20 --dataset cifar100 --trial 0
# KD: 70.66; 6.0 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet56_vanilla/resnet56_best.pth --distill kd -r 0.1 -a 0.9 -b 0 --model_s resnet20 --dataset cifar100 --trial 0
# FitNet: 69.21; 6.0 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet56_vanilla/resnet56_best.pth --distill hint -r 1 -a 0 -b 100 --hint_layer 2 --model_s resnet20 --dataset cifar100 --trial 0
# AT: 70.55; 6.0 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet56_vanilla/resnet56_best.pth --distill attention -r 1 -a 0 -b 1000 --model_s resnet20 --dataset cifar100 --trial 0
# SP: 69.67; 6.0 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet56_vanilla/resnet56_best.pth --distill similarity -r 1 -a 0 -b 3000 --model_s resnet20 --dataset cifar100 --trial 0
# CC: 69.63; 6.0 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet56_vanilla/resnet56_best.pth --distill correlation -r 1 -a 0 -b 0.02 --model_s resnet20 --dataset cifar100 --trial 0
# VID: 70.38; 6.1 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet56_vanilla/resnet56_best.pth --distill vid -r 1 -a 0 -b 1 --model_s resnet20 --dataset cifar100 --trial 0
# RKD: 69.61; 6.0 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet56_vanilla/resnet56_best.pth --distill rkd -r 1 -a 0 -b 1 --model_s resnet20 --dataset cifar100 --trial 0
# PKT: 70.34; 6.0 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet56_vanilla/resnet56_best.pth --distill pkt -r 1 -a 0 -b 30000 --model_s resnet20 --dataset cifar100 --trial 0
# AB: 69.47; 6.7 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet56_vanilla/resnet56_best.pth --distill abound -r 1 -a 0 -b 1 --init_epochs 30 --model_s resnet20 --dataset cifar100 --trial 0
# FT: 69.84; 6.9 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet56_vanilla/resnet56_best.pth --distill factor -r 1 -a 0 -b 200 --init_epochs 30 --model_s resnet20 --dataset cifar100 --trial 0
# FSP: 69.95; 6.7 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet56_vanilla/resnet56_best.pth --distill fsp -r 1 -a 0 -b 50 --init_epochs 30 --model_s resnet20 --dataset cifar100 --trial 0
# NST: 69.60; 6.0 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet56_vanilla/resnet56_best.pth --distill nst -r 1 -a 0 -b 50 --model_s resnet20 --dataset cifar100 --trial 0
# CRD: 71.16; 6.0 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet56_vanilla/resnet56_best.pth --distill crd -r 1 -a 0 -b 0.8 --model_s resnet20 --dataset cifar100 --trial 0

# ---- resnet110 -> resnet20
# KD: 70.67; 9.0 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill kd -r 0.1 -a 0.9 -b 0 --model_s resnet20 --dataset cifar100 --trial 0
# FitNet: 68.99; 9.0 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill hint -r 1 -a 0 -b 100 --hint_layer 2 --model_s resnet20 --dataset cifar100 --trial 0
# AT: 70.22; 9.0 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill attention -r 1 -a 0 -b 1000 --model_s resnet20 --dataset cifar100 --trial 0
# SP: 70.04; 9.0 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill similarity -r 1 -a 0 -b 3000 --model_s resnet20 --dataset cifar100 --trial 0
# CC: 69.48; 9.0 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill correlation -r 1 -a 0 -b 0.02 --model_s resnet20 --dataset cifar100 --trial 0
# VID: 70.16; 9.2 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill vid -r 1 -a 0 -b 1 --model_s resnet20 --dataset cifar100 --trial 0
# RKD: 69.25; 9.0 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill rkd -r 1 -a 0 -b 1 --model_s resnet20 --dataset cifar100 --trial 0
# PKT: 70.25; 9.0 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill pkt -r 1 -a 0 -b 30000 --model_s resnet20 --dataset cifar100 --trial 0
# AB: 69.53; 10.1 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill abound -r 1 -a 0 -b 1 --init_epochs 30 --model_s resnet20 --dataset cifar100 --trial 0
# FT: 70.22; 10.4 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill factor -r 1 -a 0 -b 200 --init_epochs 30 --model_s resnet20 --dataset cifar100 --trial 0
# FSP: 70.11; 10.1 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill fsp -r 1 -a 0 -b 50 --init_epochs 30 --model_s resnet20 --dataset cifar100 --trial 0
# NST: 69.53; 9.0 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill nst -r 1 -a 0 -b 50 --model_s resnet20 --dataset cifar100 --trial 0
# CRD: 71.46; 9.0 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill crd -r 1 -a 0 -b 0.8 --model_s resnet20 --dataset cifar100 --trial 0

# ---- resnet110 -> resnet32
# student alone: 71.14; 5.0 PFLOP, about 1.1 h
python train_student.py --distill vanilla --model_s resnet32 --dataset cifar100 --trial 0
# KD: 73.08; 11.1 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill kd -r 0.1 -a 0.9 -b 0 --model_s resnet32 --dataset cifar100 --trial 0
# FitNet: 71.06; 11.1 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill hint -r 1 -a 0 -b 100 --hint_layer 2 --model_s resnet32 --dataset cifar100 --trial 0
# AT: 72.31; 11.1 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill attention -r 1 -a 0 -b 1000 --model_s resnet32 --dataset cifar100 --trial 0
# SP: 72.69; 11.1 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill similarity -r 1 -a 0 -b 3000 --model_s resnet32 --dataset cifar100 --trial 0
# CC: 71.48; 11.1 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill correlation -r 1 -a 0 -b 0.02 --model_s resnet32 --dataset cifar100 --trial 0
# VID: 72.61; 11.2 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill vid -r 1 -a 0 -b 1 --model_s resnet32 --dataset cifar100 --trial 0
# RKD: 71.82; 11.1 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill rkd -r 1 -a 0 -b 1 --model_s resnet32 --dataset cifar100 --trial 0
# PKT: 72.61; 11.1 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill pkt -r 1 -a 0 -b 30000 --model_s resnet32 --dataset cifar100 --trial 0
# AB: 70.98; 12.4 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill abound -r 1 -a 0 -b 1 --init_epochs 30 --model_s resnet32 --dataset cifar100 --trial 0
# FT: 72.37; 12.5 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill factor -r 1 -a 0 -b 200 --init_epochs 30 --model_s resnet32 --dataset cifar100 --trial 0
# FSP: 71.89; 12.4 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill fsp -r 1 -a 0 -b 50 --init_epochs 30 --model_s resnet32 --dataset cifar100 --trial 0
# NST: 71.96; 11.1 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill nst -r 1 -a 0 -b 50 --model_s resnet32 --dataset cifar100 --trial 0
# CRD: 73.48; 11.1 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/resnet110_vanilla/resnet110_best.pth --distill crd -r 1 -a 0 -b 0.8 --model_s resnet32 --dataset cifar100 --trial 0

# ---- resnet32x4 -> resnet8x4
# student alone: 72.50; 12.7 PFLOP, about 1.1 h
python train_student.py --distill vanilla --model_s resnet8x4 --dataset cifar100 --trial 0
# KD: 73.33; 38.7 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill kd -r 0.1 -a 0.9 -b 0 --model_s resnet8x4 --dataset cifar100 --trial 0
# FitNet: 73.50; 39.0 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill hint -r 1 -a 0 -b 100 --hint_layer 2 --model_s resnet8x4 --dataset cifar100 --trial 0
# AT: 73.44; 38.7 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill attention -r 1 -a 0 -b 1000 --model_s resnet8x4 --dataset cifar100 --trial 0
# SP: 72.94; 38.7 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill similarity -r 1 -a 0 -b 3000 --model_s resnet8x4 --dataset cifar100 --trial 0
# CC: 72.97; 38.7 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill correlation -r 1 -a 0 -b 0.02 --model_s resnet8x4 --dataset cifar100 --trial 0
# VID: 73.09; 41.5 PFLOP, about 1.3 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill vid -r 1 -a 0 -b 1 --model_s resnet8x4 --dataset cifar100 --trial 0
# RKD: 71.90; 38.7 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill rkd -r 1 -a 0 -b 1 --model_s resnet8x4 --dataset cifar100 --trial 0
# PKT: 73.64; 38.7 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill pkt -r 1 -a 0 -b 30000 --model_s resnet8x4 --dataset cifar100 --trial 0
# AB: 73.17; 43.6 PFLOP, about 1.3 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill abound -r 1 -a 0 -b 1 --init_epochs 30 --model_s resnet8x4 --dataset cifar100 --trial 0
# FT: 72.86; 49.9 PFLOP, about 1.5 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill factor -r 1 -a 0 -b 200 --init_epochs 30 --model_s resnet8x4 --dataset cifar100 --trial 0
# FSP: 72.62; 43.6 PFLOP, about 1.3 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill fsp -r 1 -a 0 -b 50 --init_epochs 30 --model_s resnet8x4 --dataset cifar100 --trial 0
# NST: 73.30; 38.7 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill nst -r 1 -a 0 -b 50 --model_s resnet8x4 --dataset cifar100 --trial 0
# CRD: 75.51; 38.7 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/resnet32x4_vanilla/resnet32x4_best.pth --distill crd -r 1 -a 0 -b 0.8 --model_s resnet8x4 --dataset cifar100 --trial 0

# ---- vgg13 -> vgg8
# student alone: 70.36; 6.9 PFLOP, about 1.1 h
python train_student.py --distill vanilla --model_s vgg8 --dataset cifar100 --trial 0
# KD: 72.98; 13.8 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill kd -r 0.1 -a 0.9 -b 0 --model_s vgg8 --dataset cifar100 --trial 0
# FitNet: 71.02; 14.1 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill hint -r 1 -a 0 -b 100 --hint_layer 2 --model_s vgg8 --dataset cifar100 --trial 0
# AT: 71.43; 13.8 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill attention -r 1 -a 0 -b 1000 --model_s vgg8 --dataset cifar100 --trial 0
# SP: 72.68; 13.8 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill similarity -r 1 -a 0 -b 3000 --model_s vgg8 --dataset cifar100 --trial 0
# CC: 70.71; 13.8 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill correlation -r 1 -a 0 -b 0.02 --model_s vgg8 --dataset cifar100 --trial 0
# VID: 71.23; 17.4 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill vid -r 1 -a 0 -b 1 --model_s vgg8 --dataset cifar100 --trial 0
# RKD: 71.48; 13.8 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill rkd -r 1 -a 0 -b 1 --model_s vgg8 --dataset cifar100 --trial 0
# PKT: 72.88; 13.8 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill pkt -r 1 -a 0 -b 30000 --model_s vgg8 --dataset cifar100 --trial 0
# AB: 70.94; 15.5 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill abound -r 1 -a 0 -b 1 --init_epochs 30 --model_s vgg8 --dataset cifar100 --trial 0
# FT: 70.58; 22.3 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill factor -r 1 -a 0 -b 200 --init_epochs 30 --model_s vgg8 --dataset cifar100 --trial 0
# FSP: 70.23; 15.5 PFLOP, about 1.2 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill fsp -r 1 -a 0 -b 50 --init_epochs 30 --model_s vgg8 --dataset cifar100 --trial 0
# NST: 71.53; 13.8 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill nst -r 1 -a 0 -b 50 --model_s vgg8 --dataset cifar100 --trial 0
# CRD: 73.94; 13.8 PFLOP, about 1.1 h
python train_student.py --path_t ./save/teachers/models/vgg13_vanilla/vgg13_best.pth --distill crd -r 1 -a 0 -b 0.8 --model_s vgg8 --dataset cifar100 --trial 0
