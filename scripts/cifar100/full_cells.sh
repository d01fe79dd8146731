#!/usr/bin/env bash
# Cells of the published tables under the full protocol: resnet56 teaches resnet20 on complete CIFAR-100, 240 epochs, batch 64,
# SGD 0.05 times 0.1 after 150, 180, 210, weight decay 5e-4, each method with its authors' weights. In this order: the student
# alone and KD as one group; DKD, CRD, AT, PKT and DIST as one group; the student alone and KD with a second seed.
#   bash scripts/cifar100/full_cells.sh plan                                   prints the commands, trains nothing
#   bash scripts/cifar100/full_cells.sh TEACHER.pth DATA_FOLDER SAVE_ROOT [flags of every training]
# Students of a group share the teacher's forward pass. If it is stopped (Ctrl-C, SIGTERM, power cut), the same command
# resumes from the last epoch; finished runs are skipped. On a CPU with bf16 instructions, add --precision bf16 --compile default
# --compile_parts student teacher. A process of lowest priority leaves the machine usable: nice -n 19 bash scripts/cifar100/full_cells.sh ...
# The table is written to SAVE_ROOT/full_cells.md, or in the file OUT names; it is written again after each group, from the finished runs.
# Its notes name hardware and seeds, its rows the number of seeds, the teacher's accuracy and the wall-clock.
if [ "${1:-}" = plan ]; then
    dry=1
    set -- TEACHER.pth DATA_FOLDER SAVE_ROOT "${@:2}"
fi
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
teacher=${1:?path of a resnet56 checkpoint}
data=${2:?folder with cifar100.npz or the official files}
save=${3:?folder for the runs}
extra=("${@:4}")
out=${OUT:-$save/full_cells.md}

# cells TRIAL METHODS FLAGS...: these students together, then the table of everything that is finished
cells() {
    local command=(train_student.py --dataset cifar100 --data_folder "$data" --path_t "$teacher" --model_t resnet56
        --distill "$2" --model_s resnet20 --protocol authors --epochs 240 --batch_size 64 --learning_rate 0.05
        --lr_decay_epochs 150,180,210 --weight_decay 5e-4 --trial "$1" --save_root "$save" "${@:3}" ${extra[@]+"${extra[@]}"})
    if [ -n "${dry:-}" ]; then
        printf '%q ' python "${command[@]}"
        echo
        return
    fi
    "$PYTHON" "${command[@]}"
    [ -z "$dry_run" ] || return 0
    "$PYTHON" scripts/make_table.py --root "$save" --dataset cifar100 --out "$out" \
        --published repdistiller_same scripts/cifar100/full_cells/dkd.toml scripts/cifar100/full_cells/dist.toml \
        --title "CIFAR-100 under the full protocol: resnet56 ($(basename "$teacher")) teaches resnet20"
}

cells 0 vanilla,kd
cells 0 dkd,crd,at,pkt,dist --dkd_beta 2 # as published for this pair
cells 1 vanilla,kd
[ ! -f "$out" ] || cat "$out"
