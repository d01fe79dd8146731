#!/usr/bin/env bash
# Long training by the teacher's logits alone, with the published settings of two papers on CIFAR-100; nothing measured yet.
# vanillakd: Hao et al., NeurIPS 2023, strategy A2 of their README: kd at temperature 1 next to the labels, LAMB, RandAugment,
#            MixUp and CutMix, drop path, 300 epochs. Theirs is ImageNet, batch 2048, binary cross-entropy, and every image
#            three times in a batch; ours is batch 256, softmax, every image once.
# funmatch:  Beyer et al., CVPR 2022, the configuration they publish for Pets ("medium"): no labels, the same view for both
#            networks, MixUp with a uniform weight, Adam, batch 512. 1200 epochs, as they train on ImageNet.
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
        --save_root "$save" --distill kd --protocol modern "$@" ${extra[@]+"${extra[@]}"}
}

if [ "$study" = vanillakd ]; then
    student --kd_T 1 --optimizer timm:lamb --learning_rate 0.005 --weight_decay 0.02 --epochs 300 --ema 0 --label_smoothing 0 \
        --augment_magnitude 7 --mixup 0.1 --cutmix 1.0 --drop_path 0.05
else
    student --kd_T 10 -c 0 --optimizer adamw --learning_rate 0.003 --weight_decay 0.0003 --clip_grad 1 --batch_size 512 \
        --epochs 1200 --ema 0 --augment none --label_smoothing 0 --mixup 1.0 --cutmix 0 --drop_path 0
fi
