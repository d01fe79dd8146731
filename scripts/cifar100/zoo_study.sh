#!/usr/bin/env bash
# Trains the methods for a teacher and a student of plain CIFAR networks: ten epochs on a stratified tenth of CIFAR-100 (5,000 images,
# --few_ratio 0.1), two decays, two seeds, resnet20 -> resnet8, evaluated on the complete test set; the student alone next to them.
#   bash scripts/cifar100/zoo_study.sh TEACHER.pth DATA_FOLDER SAVE_ROOT [JOBS [flags of every training]]
# METHODS=recent trains those since 2022, next to kd, sp and hkd, and writes cifar100_zoo_recent_resnet20_resnet8.md instead.
# Methods of one group are lanes of one process: they share the batches and the teacher's forward pass. Those with a first
# stage (three epochs here) are a separate group. An interrupted study resumes where it stopped. Cost: two hours on one core with native bf16.
# This is a check that each method works, on a set far too small to rank them: its results cannot be compared with published ones.
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
teacher=${1:?path of a resnet20 checkpoint}
data=${2:?folder with cifar100.npz or the official files}
save=${3:?folder for the runs}
jobs=${4:-2}
extra=("${@:5}")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHON teacher data save

run() {
    local method=${1%%[@:]*} rate=${1%%:*} trial=$2 path=() more=()
    [[ $rate != *@* ]] || more=(--learning_rate "${rate#*@}")
    [[ $1 != *:* ]] || more+=("${1#*:}")
    [ "$method" = vanilla ] || path=(--path_t "$teacher" --model_t resnet20 --skip_validation --init_epochs 3)
    "$PYTHON" train_student.py --dataset cifar100 --data_folder "$data" --save_root "$save" --model_s resnet8 --few_ratio 0.1 \
        --distill "$method" ${path[@]+"${path[@]}"} --epochs 10 --lr_decay_epochs 6,8 --trial "$trial" --tb_backend none \
        ${more[@]+"${more[@]}"} "${@:3}"
}
export -f run
# at 0.05 the loss of SemCKD leaves the finite numbers within ten steps here; so it and the student alone take 0.01 as well.
# The weights of LDRLD were published for a mean over pairs of classes, not for the paper's sum, with which it learns nothing.
recent="ttm,pld,luminet,wkd_l,rld,sdd,ldrld,skd ldrld:--ldrld_as_published dot,deepkd,dhkd crld itrd,wkd_f,norm,kdpp,embed,fcfd"
case ${METHODS:-all} in
    all)
        table=zoo what="methods for CIFAR networks"
        groups="vanilla kd,fitnet,at,sp,vid,crd,srrl,simkd semckd@0.01 vanilla@0.01 cc,rkd,pkt,nst,kdsvd,irg,hkd,ofd,reviewkd
            dkd,dist,nkd,wttm,ctkd,cat_kd mgd,srd,vkd,ofa_kd,mlkd ab,ft,fsp $recent"
        ;;
    recent) table=zoo_recent what="methods since 2022" groups="vanilla kd,sp,hkd,$recent" ;;
    *) echo "METHODS=$METHODS must be all or recent" >&2 && exit 2 ;;
esac
for methods in $groups; do
    printf '%s 0\n%s 1\n' "$methods" "$methods"
done | xargs -P "$jobs" -I{} bash -c 'set -euo pipefail; run {} "$@"' run ${extra[@]+"${extra[@]}"} | into "$save/study.log"
end_of_dry_run
"$PYTHON" scripts/make_table.py --root "$save" --out "results/cifar100_${table}_resnet20_resnet8.md" \
    --title "CIFAR-100, a tenth of train, short schedule: $what, resnet20 teaches resnet8"
