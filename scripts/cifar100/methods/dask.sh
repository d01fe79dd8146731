#!/usr/bin/env bash
# Vision-to-Sensor Knowledge Distillation (Ni et al., ICASSP 2022).
# CIFAR-100, resnet32x4 -> resnet8x4, 240 epochs.
# Published: nothing on CIFAR-100; the method is of pairs of video and sensor, see scripts/vskd.
# Not measured here at this length.
#   bash scripts/cifar100/methods/dask.sh TEACHER.pth [further flags]      e.g. --trial 1 --data_folder DIR
source "$(dirname "${BASH_SOURCE[0]}")/../../setup.sh"
teacher=${1:?path of a resnet32x4 checkpoint}
shift
"$PYTHON" train_student.py --distill dask \
    -c 1 -d 0.01 -b 1 --kd_T 4 --dask_distance 1 --dask_angle 1 --dask_semantic 1 \
    --dataset cifar100 --path_t "$teacher" --model_t resnet32x4 --model_s resnet8x4 \
    --batch_size 64 --epochs 240 --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "$@"
