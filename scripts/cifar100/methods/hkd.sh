#!/usr/bin/env bash
# Heterogeneous KD by Information Flow Modeling (Passalis et al., CVPR 2020).
# CIFAR-100, resnet32x4 -> resnet8x4, 240 epochs.
# Published 74.86 ± 0.21 (SemCKD README). In two runs: PKT trains an auxiliary teacher, resnet8x4_double, which then
# teaches resnet8x4.
# Not measured here at this length.
#   bash scripts/cifar100/methods/hkd.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4 checkpoint}
shift
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$PYTHON" train_student.py --distill pkt \
    -c 1 -d 1 -b 30000 \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4 --model_s resnet8x4_double \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@" \
    --save_root save/hkd | tee "$log"
end_of_dry_run
# the run says where it lies
auxiliary=$(result_of "$log")
"$PYTHON" train_student.py --distill hkd \
    -c 1 -d 1 -b 1 --hkd_layer_weights semckd \
    --dataset cifar100 --path_t "$auxiliary/resnet8x4_double_best.pth" --model_t resnet8x4_double --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
