#!/usr/bin/env bash
# A scaled study on complete CIFAR-100 for machines without a GPU: resnet20 teaches resnet8, ten epochs with two decays, three
# seeds; the student alone, two methods of logits (kd, dist), three of features (hint, similarity, simkd). A smaller pair
# and a schedule 24 times shorter than the published tables: its results cannot be compared with published numbers.
#   bash scripts/cifar100/scaled_study.sh TEACHER.pth DATA_FOLDER SAVE_ROOT [JOBS [flags of every training]]
# The six students of a seed are lanes of one process: one order of the data, one forward pass of the teacher for all. A teacher
# cache would not help: it stores 162 views of an image, and ten epochs use ten. If interrupted, the same command resumes.
# Cost: about 47 minutes a seed on one core with native bf16, 2.4 core-hours in all; JOBS seeds at a time.
# Table, report page and curves are written to results/cifar100_scaled_resnet20_resnet8.md, .html and _curves.png.
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
teacher=${1:?path of a resnet20 checkpoint}
data=${2:?folder with cifar100.npz or the official files}
save=${3:?folder for the runs}
jobs=${4:-1}
extra=("${@:5}")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

printf '%s\n' 0 1 2 | xargs -P "$jobs" -I{} "$PYTHON" train_student.py --dataset cifar100 --data_folder "$data" \
    --path_t "$teacher" --model_t resnet20 --distill vanilla,kd,dist,hint,similarity,simkd --model_s resnet8 \
    --epochs 10 --lr_decay_epochs 6,8 --trial {} --save_root "$save" ${extra[@]+"${extra[@]}"} | into "$save/study.log"
end_of_dry_run
out=results/cifar100_scaled_resnet20_resnet8
title="CIFAR-100, scaled study: resnet20 teaches resnet8, 10 epochs, three seeds"
"$PYTHON" scripts/make_table.py --root "$save" --out "$out.md" --title "$title"
"$PYTHON" scripts/report.py --root "$save" --out "$out.html" --title "$title" --hide_folders
"$PYTHON" scripts/plot.py curves --root "$save" --out "${out}_curves.png"
