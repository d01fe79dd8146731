#!/usr/bin/env bash
# A small Vision Transformer for CIFAR-100 from scratch, itself taught by a CNN's logits (as DeiT's are).
#   bash scripts/cakd/teacher.sh CNN.pth DATA_FOLDER SAVE_ROOT [MODEL] [MODEL_T] [FLAG ...]
# MODEL: the trained network (default vit_tiny_cifar); MODEL_T: the CNN's name, wrn_16_2 unless given; FLAGs are passed to the run.
# AdamW and a cosine, as in short_study.sh, which records this recipe in a short schedule: in the first 300 steps of 32
# images it was better than plain SGD (1e-3 against 0.02: cross-entropy 3.85 against 4.15). Not measured yet at full length.
# The student of this command is the teacher of the next: SAVE_ROOT/students/models/S:MODEL_T:.../MODEL_best.pth
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
cnn=${1:?checkpoint of a CNN that teaches, e.g. a wrn_16_2}
data=${2:?folder with cifar100.npz or the official files}
save=${3:?folder for the runs}
model=${4:-vit_tiny_cifar}
model_t=${5:-wrn_16_2}
"$PYTHON" train_student.py --dataset cifar100 --data_folder "$data" --save_root "$save" --model_s "$model" --distill kd \
    --path_t "$cnn" --model_t "$model_t" --epochs 240 --batch_size 64 --optimizer adamw --learning_rate 1e-3 \
    --weight_decay 0.05 --schedule cosine --warmup_epochs 10 "${@:6}"
