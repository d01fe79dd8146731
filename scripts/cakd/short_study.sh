#!/usr/bin/env bash
# Three rows under one recipe, student alone, MSE on logits and CAKD, two seeds, ten epochs with two decays, on
#   (a) a tenth of CIFAR-100 (5,000 images), resnet8 taught by a vit_micro_cifar that is trained here, on two fifths of the
#       set, and itself taught by a CNN's logits;
#   (b) a small image folder at 224 px, a ShuffleNetV2 x0.5 taught by a vit_micro_224 that is trained here on labels;
#   (c) the same for a ResNet18, trained with AdamW and a cosine, which learns more from so few images.
#   bash scripts/cakd/short_study.sh CNN.pth CIFAR_FOLDER IMAGE_FOLDER SAVE_ROOT [JOBS [flags of every training]]
# Gradients are clipped in every row (--clip_grad 5; ours): the first steps of CAKD's value relations diverge otherwise.
# CNN.pth: a wrn_16_2 for CIFAR-100. An interrupted study resumes where it stopped.
# Cost: about 105 minutes on one core with native bf16: the teachers 22 and 5, the six runs of (a) 12, of (b) 13, of (c) 53.
# TRY=1 before the command runs only two steps of everything, and writes its tables to SAVE_ROOT.
# The tables are written to results/cakd_short_cifar100.md, cakd_short_folder224.md and cakd_short_folder224_resnet18.md; they name
# the teacher's accuracy, and note if it is below the student alone. Such sets and schedules cannot reproduce
# published numbers.
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
cnn=${1:?checkpoint of a wrn_16_2}
cifar=${2:?folder with cifar100.npz or the official files}
images=${3:?folder with train/ and val/}
save=${4:?folder for the runs}
jobs=${5:-1}
extra=("${@:6}")
results=results
train=""
if [ -n "${TRY:-}" ]; then
    results=$save train='--epochs 1 --warmup_epochs 0 --max_steps 2'
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHON

cifar_recipe="--dataset cifar100 --few_ratio 0.1 --model_s resnet8 --learning_rate 0.05
    --lr_decay_epochs 6,8"
folder_recipe="--dataset folder --image_size 224 --model_s shufflenet_v2_x0_5 --batch_size 32
    --learning_rate 0.05 --lr_decay_epochs 6,8"
resnet_recipe="--dataset folder --image_size 224 --model_s ResNet18 --batch_size 32
    --optimizer adamw --learning_rate 5e-4 --weight_decay 0.05 --schedule cosine --warmup_epochs 1"
common="--epochs 10 --clip_grad 5 --tb_backend none"

# the teachers; a command whose run is finished says so and does nothing
transformer="--optimizer adamw --learning_rate 1e-3 --weight_decay 0.05 --schedule cosine
    --warmup_epochs 1 --warmup_start 0.3 --tb_backend none"
# shellcheck disable=SC2086 (lists of flags)
{
    "$PYTHON" train_student.py --dataset cifar100 --data_folder "$cifar" --few_ratio 0.4 --model_s vit_micro_cifar \
        --distill kd --path_t "$cnn" --model_t wrn_16_2 $transformer --batch_size 32 --epochs 8 \
        --save_root "$save/teacher_cifar" $train ${extra[@]+"${extra[@]}"}
    "$PYTHON" train_teacher.py --dataset folder --data_folder "$images" --image_size 224 --model vit_micro_224 \
        $transformer --batch_size 16 --epochs 30 --save_root "$save/teacher_folder" $train ${extra[@]+"${extra[@]}"}
} | into "$save/teachers.log"
end_of_dry_run
{ read -r cifar_teacher && read -r folder_teacher; } < <(results_of "$save/teachers.log" | tail -n 2)
cifar_teacher+=/vit_micro_cifar_last.pth folder_teacher+=/vit_micro_224_last.pth

run() {
    local set=$1 method=$2 trial=$3 path=() recipe=$cifar_recipe teacher=$cifar_teacher data=$images
    [ "$set" = cifar ] && data=$cifar
    [ "$set" = folder ] && recipe=$folder_recipe teacher=$folder_teacher
    [ "$set" = resnet ] && recipe=$resnet_recipe teacher=$folder_teacher
    [ "$method" = baseline ] || path=(--path_t "$teacher")
    # shellcheck disable=SC2086 (a list of flags)
    "$PYTHON" train_student.py $recipe $common --data_folder "$data" --distill "$method" ${path[@]+"${path[@]}"} --trial "$trial" \
        --save_root "$save/$set" $train "${@:4}"
}
export -f run
export cifar images cifar_recipe folder_recipe resnet_recipe common train cifar_teacher folder_teacher save
printf '%s\n' {cifar,folder,resnet}' '{baseline,logits,cakd}' '{0,1} |
    xargs -P "$jobs" -I{} bash -c 'set -euo pipefail; run {} "$@"' run ${extra[@]+"${extra[@]}"} | into "$save/study.log"
"$PYTHON" scripts/make_table.py --in_words --root "$save/cifar" --out "$results"/cakd_short_cifar100.md \
    --title "A tenth of CIFAR-100, ten epochs: vit_micro_cifar teaches resnet8"
"$PYTHON" scripts/make_table.py --in_words --root "$save/folder" --out "$results"/cakd_short_folder224.md \
    --title "A small image folder at 224 px, ten epochs: vit_micro_224 teaches ShuffleNetV2 x0.5"
"$PYTHON" scripts/make_table.py --in_words --root "$save/resnet" --out "$results"/cakd_short_folder224_resnet18.md \
    --title "A small image folder at 224 px, ten epochs: vit_micro_224 teaches ResNet18"
