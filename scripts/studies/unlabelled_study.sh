#!/usr/bin/env bash
# What images without labels add: CIFAR-100 with a tenth of its labels, resnet20 teaches resnet8, three seeds. The student
# alone and with kd sees the labelled tenth; with --unlabelled, kd also learns from the other images.
#   bash scripts/studies/unlabelled_study.sh TEACHER_RESNET20.pth DATA_FOLDER SAVE_ROOT [flags of every training]
# If it is stopped, the same command resumes; finished runs are skipped. Writes results/unlabelled_cifar100.md.
# An epoch with --unlabelled passes all images once (--label_ratio 0.1, their share). Cost: two hours of one core with AVX2.
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
teacher=${1:?path of a resnet20 checkpoint}
data=${2:?folder with cifar100.npz or the official files}
save=${3:?folder for the runs}

student() {
    "$PYTHON" train_student.py --dataset cifar100 --data_folder "$data" --path_t "$teacher" --model_s resnet8 --few_ratio 0.1 \
        --epochs 10 --lr_decay_epochs 6,8 --save_root "$save" --trial "$trial" "$@"
}

for trial in 0 1 2; do
    rest="$save/rest_$trial"
    if [ ! -d "$rest" ]; then # complete, or not there
        run_or_skip scripts/cifar100/rest.py --data_folder "$data" --few_ratio 0.1 --seed "$trial" --out "$rest.part"
        [ -n "$dry_run" ] || mv "$rest.part" "$rest"
    fi
    student --distill vanilla "${@:4}"
    student --distill kd "${@:4}"
    [ -n "$dry_run" ] && [ ! -d "$rest" ] || student --distill kd --unlabelled "$rest" --label_ratio 0.1 "${@:4}"
done
end_of_dry_run
"$PYTHON" scripts/make_table.py --root "$save" --dataset cifar100 --out results/unlabelled_cifar100.md \
    --title "CIFAR-100 with a tenth of its labels: resnet20 teaches resnet8, without and with the other images (then an epoch is ten times as long)"
