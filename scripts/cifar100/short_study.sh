#!/usr/bin/env bash
# A short study on complete CIFAR-100: student resnet8 alone, with KD and with SimKD, from a resnet20 teacher; two seeds,
# ten epochs with two decays; the student alone once more in float32, to compare with bf16 where that is the default.
#   bash scripts/cifar100/short_study.sh TEACHER.pth DATA_FOLDER SAVE_ROOT [JOBS [flags of every training]]
# Cost: about 50 minutes with JOBS=2 on two cores of 2.x GHz with native bf16. The table is written to
# results/cifar100_short_resnet20_resnet8.md, and cannot be compared with the published numbers of 240 epochs.
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
teacher=${1:?path of a resnet20 checkpoint}
data=${2:?folder with cifar100.npz or the official files}
save=${3:?folder for the runs}
jobs=${4:-2}
extra=("${@:5}")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHON

run() {
    local method=$1 trial=$2
    shift 2
    local path=(--path_t "$teacher" --model_t resnet20 --skip_validation)
    [ "$method" = vanilla ] && path=()
    "$PYTHON" train_student.py --dataset cifar100 --data_folder "$data" --save_root "$save" --model_s resnet8 \
        --distill "$method" ${path[@]+"${path[@]}"} --epochs 10 --lr_decay_epochs 6,8 --trial "$trial" "$@"
}
export -f run
export teacher data save
printf '%s\n' "simkd 0" "kd 0" "simkd 1" "kd 1" "vanilla 0" "vanilla 1" \
    "vanilla 0 --precision fp32" "vanilla 1 --precision fp32" | xargs -P "$jobs" -I{} bash -c 'set -euo pipefail; run {} "$@"' run \
    ${extra[@]+"${extra[@]}"} | into "$save/study.log"
end_of_dry_run
"$PYTHON" scripts/make_table.py --root "$save" --out results/cifar100_short_resnet20_resnet8.md \
    --title "CIFAR-100, short schedule: resnet20 teaches resnet8"
