#!/usr/bin/env bash
# Long training with the teacher's logits, as in two papers. Not measured yet.
# vanillakd: Hao et al., NeurIPS 2023: plain kd at temperature 1 next to the labels, LAMB, RandAugment, MixUp and CutMix,
#            drop path, 600 epochs. The paper uses ImageNet, batches of 2048 and binary cross-entropy; this script softmax.
# funmatch:  Beyer et al., CVPR 2022: no labels, MixUp with a uniform weight, the same view for both, thousands of epochs.
#   bash scripts/cifar100/patient_teachers.sh vanillakd TEACHER.pth DATA_FOLDER SAVE_ROOT [flags of the training]
#   bash scripts/cifar100/patient_teachers.sh funmatch TEACHER.pth DATA_FOLDER SAVE_ROOT [flags of the training]
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
study=${1:?vanillakd or funmatch}
teacher=${2:?path of a checkpoint, or a name as timm:NAME}
data=${3:?folder with cifar100.npz or the official files}
save=${4:?folder for the runs}
extra=("${@:5}")

student() {
    "$PYTHON" train_student.py --dataset cifar100 --data_folder "$data" --path_t "$teacher" --model_s resnet8x4 \
        --save_root "$save" --distill kd --kd_T 1 --protocol modern "$@" ${extra[@]+"${extra[@]}"}
}

if [ "$study" = vanillakd ]; then
    student --optimizer timm:lamb --learning_rate 0.005 --weight_decay 0.02 --epochs 600 --ema 0 --label_smoothing 0 \
        --augment_magnitude 7 --mixup 0.1 --cutmix 1.0 --drop_path 0.05
else
    student -c 0 --optimizer adamw --learning_rate 0.003 --weight_decay 0.0001 --epochs 9600 --ema 0 --augment none \
        --label_smoothing 0 --mixup 1.0 --cutmix 0 --drop_path 0
fi
