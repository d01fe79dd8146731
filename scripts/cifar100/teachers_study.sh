#!/usr/bin/env bash
# Two studies on CIFAR-100, three seeds each; nothing measured yet.
# labels:   a tenth of the labels. resnet8 alone, with kd on the labelled tenth, and with kd on all images (--unlabelled).
# headless: resnet8 alone, and taught by a small ViT trained here: by its own head, and without that head by a linear
#           probe, by class means, and by features alone.
#   bash scripts/cifar100/teachers_study.sh labels TEACHER.pth DATA_FOLDER SAVE_ROOT [flags of every training]
#   bash scripts/cifar100/teachers_study.sh headless TEACHER.pth DATA_FOLDER SAVE_ROOT [flags of every training]
# Stopped at any time, the same command resumes; what is finished is skipped. The table is written to
# SAVE_ROOT/labels.md or SAVE_ROOT/headless.md.
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
study=${1:?labels or headless}
teacher=${2:?path of a checkpoint, of a resnet20 or of a ViT}
data=${3:?folder with cifar100.npz or the official files}
save=${4:?folder for the runs}
extra=("${@:5}")

student() {
    "$PYTHON" train_student.py --dataset cifar100 --data_folder "$data" --path_t "$teacher" --model_s resnet8 \
        --save_root "$save" "$@" ${extra[@]+"${extra[@]}"}
}

for trial in 0 1 2; do
    if [ "$study" = labels ]; then
        rest="$save/rest_$trial"
        [ -d "$rest" ] || run_or_skip scripts/cifar100/rest.py --data_folder "$data" --few_ratio 0.1 --seed "$trial" --out "$rest"
        student --distill vanilla --few_ratio 0.1 --trial "$trial"
        student --distill kd --few_ratio 0.1 --trial "$trial"
        [ -n "$dry_run" ] && [ ! -d "$rest" ] || student --distill kd --few_ratio 0.1 --unlabelled "$rest" --trial "$trial"
    else
        student --distill vanilla --trial "$trial"
        student --distill kd --trial "$trial"
        student --distill kd --teacher_probe linear --trial "$trial"
        student --distill kd --teacher_probe means --trial "$trial"
        student --distill embed -d 0 --trial "$trial"
    fi
done
end_of_dry_run
"$PYTHON" scripts/make_table.py --root "$save" --dataset cifar100 --out "$save/$study.md"
