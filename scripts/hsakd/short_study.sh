#!/usr/bin/env bash
# The whole pipeline in a short schedule on a quarter of CIFAR-100 (12,500 images, stratified): heads on the frozen backbone of
# a published WRN-16-2, an HSAKD student ResNet20, a few-shot one with a twentieth (2,500 images, 25 a class), the student
# alone for comparison, and a linear probe of each on TinyImageNet. Ten epochs with two decays, two seeds, two rotations a
# step instead of the published four (--rotations 2, half the arithmetic); CIFAR's complete test set.
#   bash scripts/hsakd/short_study.sh WRN_16_2.pth CIFAR_FOLDER TINYIMAGENET_FOLDER SAVE_ROOT [JOBS [flags of every training]]
# Cost: about 115 minutes on one core with native bf16, estimated from single steps of 64 images: teacher forward 0.35 s and
# student 0.57 s (125,000 images of each HSAKD student: 30 minutes; few-shot 6), teacher's heads 0.76 s (50,000 images: 10),
# student alone 0.13 s (4 and 1), evaluation in float32 10 s an epoch.
# An interrupted study resumes where it stopped.
# TRY=1 before the command runs only two steps of everything, and writes its tables to SAVE_ROOT.
# Tables are written to results/hsakd_short.md and results/hsakd_short_probe.md; they cannot be compared with published numbers of 240
# epochs. The student alone is the same network with unused heads.
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
backbone=${1:?path of a wrn_16_2 checkpoint}
data=${2:?folder with cifar100.npz or the official files}
tiny=${3:?tiny-imagenet-200 as unpacked}
save=${4:?folder for the runs}
jobs=${5:-1}
extra=("${@:6}")
results=results
train=""
probe=""
if [ -n "${TRY:-}" ]; then
    results=$save train='--epochs 1 --max_steps 2' probe='--few_ratio 0.1 --epochs 2'
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHON data tiny save train probe
common="--dataset cifar100 --nesterov --tb_backend none"
export common

# shellcheck disable=SC2086 (lists of flags)
"$PYTHON" train_teacher.py $common --data_folder "$data" --save_root "$save/teacher" --model wrn_16_2_aux --distill hsakd_teacher \
    --freeze_backbone --pretrained_backbone "$backbone" --few_ratio 0.25 --rotations 2 --epochs 4 --lr_decay_epochs 3 \
    --report_heads --trial 0 $train ${extra[@]+"${extra[@]}"} | into "$save/teacher.log"
end_of_dry_run
mkdir -p "$save/probes"
teacher=$(result_of "$save/teacher.log")/wrn_16_2_aux_last.pth
export teacher dry_run

row() { # METHOD RATIO TRIAL: train, then probe with both solvers
    local method=$1 ratio=$2 trial=$3 own="$save/$1_$2_$3" hsakd=() student solver
    [ "$method" = vanilla ] || hsakd=(--path_t "$teacher" --rotations 2)
    # shellcheck disable=SC2086 (lists of flags)
    train train_student.py $common --data_folder "$data" --save_root "$own" --model_s resnet20_aux \
        --distill "$method" ${hsakd[@]+"${hsakd[@]}"} --few_ratio "$ratio" --epochs 10 --lr_decay_epochs 6,8 --trial "$trial" $train "${@:4}"
    student=$run/resnet20_aux_last.pth
    for solver in sgd lbfgs; do
        # shellcheck disable=SC2086 (a list of flags)
        "$PYTHON" eval_rep.py --s_path "$student" --dataset TinyImageNet --data "$tiny" \
            --solver "$solver" --seed "$trial" --json "$save/probes/$method $ratio $solver $trial.json" $probe
    done
}
export -f row train results_of
printf '%s\n' {hsakd,vanilla}' '{0.25,0.05}' '0 {hsakd,vanilla}' '{0.25,0.05}' '1 |
    xargs -P "$jobs" -I{} bash -c 'set -euo pipefail; row {} "$@"' row ${extra[@]+"${extra[@]}"} | into "$save/study.log"
"$PYTHON" scripts/make_table.py --root "$save"/teacher "$save"/{hsakd,vanilla}_{0.25,0.05}_{0,1} \
    --out "$results/hsakd_short.md" \
    --title "HSAKD on a quarter and a twentieth of CIFAR-100, short schedule: WRN-16-2 teaches ResNet20"
"$PYTHON" scripts/hsakd/probe_table.py "$save/probes" --out "$results/hsakd_short_probe.md"
