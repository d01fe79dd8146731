#!/usr/bin/env bash
# Three rows under one recipe: the student alone, MSE on logits, CAKD. The paper's CIFAR-100 schedule (200 epochs, batch
# 64, learning rate 0.1, divided by ten after 100 and 150, weight decay 1e-4).
#   bash scripts/cakd/cifar100.sh TEACHER.pth MODEL_T DATA_FOLDER SAVE_ROOT [MODEL_S] [TRIALS] [FLAG ...]
# MODEL_S: the student, ResNet50 unless given; TRIALS: 5 unless given; FLAGs are passed to every run.
# Published with ViT-B/16 (90.92) and ResNet50 on images scaled up to ImageNet's size: base 85.02, logits 86.42, CAKD
# 87.39, mean of five seeds. On 32 px with a small teacher this is another experiment. Not measured yet at full length.
# Gradients are clipped in every row (--clip_grad 5; ours): the first steps of CAKD's value relations diverge otherwise.
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
teacher=${1:?checkpoint of a Vision Transformer}
model_t=${2:?its name, e.g. vit_tiny_cifar}
data=${3:?folder with cifar100.npz or the official files}
save=${4:?folder for the runs}
student=${5:-ResNet50}
trials=${6:-5}
recipe=(--dataset cifar100 --data_folder "$data" --save_root "$save" --model_s "$student" --trials "$trials" --epochs 200
    --batch_size 64 --learning_rate 0.1 --lr_decay_epochs 100,150 --weight_decay 1e-4 --clip_grad 5
    "${@:7}")
"$PYTHON" train_student.py "${recipe[@]}" --distill baseline
"$PYTHON" train_student.py "${recipe[@]}" --distill logits --path_t "$teacher" --model_t "$model_t"
"$PYTHON" train_student.py "${recipe[@]}" --distill cakd --cakd_variant paper --path_t "$teacher" --model_t "$model_t"
