#!/usr/bin/env bash
# A scaled study on complete CIFAR-100, where no GPU is at hand: resnet20 teaches resnet8, 15 epochs with two decays, three
# seeds; the student alone, three methods of logits, five of features. A smaller pair and a schedule sixteen times shorter than the
# published tables: no line of it belongs beside a published number.
#   bash scripts/cifar100/scaled_study.sh TEACHER.pth DATA_FOLDER SAVE_ROOT [JOBS]
# Methods of logits take the teacher from a cache of its views (1.6 GB below SAVE_ROOT), those of features share one teacher
# forward as lanes of one process. An interrupted study goes on where it stopped. Cost, estimated from 3.5 s per 5,000 images
# of resnet8 alone on one core with native bf16, and from counted MACs: about 6 core-hours, three hours with JOBS=2 on two cores.
# The table lands in results/cifar100_scaled_resnet20_resnet8.md, page and curves beside the runs.
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
teacher=${1:?path of a resnet20 checkpoint}
data=${2:?folder with cifar100.npz or the official files}
save=${3:?folder for the runs}
jobs=${4:-2}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHON teacher data save

run() {
    local methods=$1 trial=$2 path=()
    [ "$methods" = vanilla ] || path=(--path_t "$teacher" --model_t resnet20 --skip_validation)
    [ "$methods" = kd,dkd,dist ] && path+=(--teacher_cache "$save/teacher_cache/resnet20_cifar100")
    "$PYTHON" train_student.py --dataset cifar100 --data_folder "$data" --save_root "$save" --model_s resnet8 \
        --distill "$methods" ${path[@]+"${path[@]}"} --epochs 15 --lr_decay_epochs 9,12 --trial "$trial"
}
export -f run
mkdir -p "$save"
for trial in 0 1 2; do
    printf '%s\n' "hint,attention,similarity,crd,simkd $trial" "kd,dkd,dist $trial" "vanilla $trial"
done | xargs -P "$jobs" -I{} bash -c 'set -euo pipefail; run {}' >>"$save/study.log"
title="CIFAR-100, scaled study: resnet20 teaches resnet8, 15 epochs, three seeds"
"$PYTHON" scripts/make_table.py --root "$save" --out results/cifar100_scaled_resnet20_resnet8.md --title "$title"
"$PYTHON" scripts/report.py --root "$save" --title "$title" --out "$save/report.html"
"$PYTHON" scripts/plot.py curves --root "$save" --out "$save/curves.pdf"
