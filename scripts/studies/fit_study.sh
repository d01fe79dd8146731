#!/usr/bin/env bash
# How well networks of CIFAR-100 fit their training images: tests each checkpoint on the test set and on the training images, without
# augmentation, and writes what test_model.py prints.
#   bash scripts/studies/fit_study.sh DATA_FOLDER OUT.md LABEL=CHECKPOINT [LABEL=CHECKPOINT ...]
# results/cifar100_full_fit.md was written by it, of the networks in results/cifar100_full_resnet56_resnet20.md. Cost: about three minutes
# of one core for each network.
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
data=${1:?folder with cifar100.npz or the official files}
out=${2:?file to write}
: "${3:?LABEL=CHECKPOINT}"
text="# How well networks of CIFAR-100 fit their training images"
for named in "${@:3}"; do
    text+=$'\n\n'"## ${named%%=*}"$'\n\n```text'
    for part in "" --train_images; do
        said=$("$PYTHON" test_model.py --path "${named#*=}" --dataset cifar100 --data_folder "$data" $part 2>&1)
        text+=$'\n'$(grep -E 'samples,|^top-1|batch norm' <<<"${said//"${named#*=}"/"${named%%=*}"}")
    done
    text+=$'\n```'
done
end_of_dry_run
printf '%s\n' "$text" $'\nWritten by scripts/studies/fit_study.sh.' >"$out"
