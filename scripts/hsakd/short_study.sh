#!/usr/bin/env bash
# The whole chain in a short schedule on a quarter of CIFAR-100 (12,500 images, stratified): heads on the frozen backbone of
# a published WRN-16-2, an HSAKD student ResNet20, one with a tenth of the images (5,000), the student alone beside both, and
# a linear probe of each on TinyImageNet. Ten epochs with two decays, two seeds; CIFAR's complete test set.
#   bash scripts/hsakd/short_study.sh WRN_16_2.pth CIFAR_FOLDER TINYIMAGENET_FOLDER SAVE_ROOT [JOBS]
# An interrupted study goes on where it stopped. The student alone is the same network, whose heads then stay idle. Tables
# land in results/; no line belongs beside a published number of 240 epochs.
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
backbone=${1:?path of a wrn_16_2 checkpoint}
data=${2:?folder with cifar100.npz or the official files}
tiny=${3:?tiny-imagenet-200 as unpacked}
save=${4:?folder for the runs}
jobs=${5:-2}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHON data tiny save
mkdir -p "$save/probes"
common="--dataset cifar100 --data_folder $data --save_root $save --epochs 10 --lr_decay_epochs 6,8 --nesterov --tb_backend none"
export common

"$PYTHON" train_teacher.py $common --model wrn_16_2_aux --distill hsakd_teacher --freeze_backbone \
    --pretrained_backbone "$backbone" --few_ratio 0.25 --report_heads --trial 0 >"$save/teacher.log"
teacher=$(ls -d "$save"/teachers/models/wrn_16_2_aux_hsakd_teacher_cifar100_trial_0_*/wrn_16_2_aux_last.pth)
export teacher

run() { # METHOD RATIO TRIAL: train, then probe with both solvers
    local method=$1 ratio=$2 trial=$3 path=() folder solver
    [ "$method" = vanilla ] || path=(--path_t "$teacher" --skip_validation)
    "$PYTHON" train_student.py $common --model_s resnet20_aux --distill "$method" ${path[@]+"${path[@]}"} \
        --few_ratio "$ratio" --trial "$trial"
    folder=$(ls -d "$save"/students/models/*_"$method"_*_"$trial"_few_ratio?"$ratio"_*)
    for solver in sgd lbfgs; do
        "$PYTHON" eval_rep.py --s_path "$folder/resnet20_aux_last.pth" --dataset TinyImageNet --data "$tiny" \
            --solver "$solver" --seed "$trial" --json "$save/probes/$method $ratio $solver $trial.json"
    done
}
export -f run
printf '%s\n' "hsakd 0.25 0" "hsakd 0.25 1" "hsakd 0.1 0" "hsakd 0.1 1" "vanilla 0.25 0" "vanilla 0.25 1" "vanilla 0.1 0" \
    "vanilla 0.1 1" | xargs -P "$jobs" -I{} bash -c 'set -euo pipefail; run {}' >"$save/study.log"
"$PYTHON" scripts/make_table.py --root "$save" --out results/hsakd_short.md \
    --title "HSAKD on a quarter and a tenth of CIFAR-100, short schedule: WRN-16-2 teaches ResNet20"
"$PYTHON" scripts/hsakd/probe_table.py "$save/probes" --out results/hsakd_short_probe.md
