#!/usr/bin/env bash
# The student of VSKD: ResNet-18 on the Gramian angular field of the accelerometer of UTD-MHAD, taught by DASK.
#   bash scripts/vskd/student.sh UTD_FOLDER TEACHER.pth [cross_subject|trial] [further flags]
# Published: Adam at 2e-4 from ImageNet weights, batch 16, 100 epochs. Here SGD from scratch; not run at this length: see
# results/vskd_utd_mhad_short.md for the schedule that was.
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
data=${1:?folder of UTD-MHAD}
teacher=${2:?checkpoint that teacher.sh wrote}
split=${3:-cross_subject}
exec "$PYTHON" train_student.py --dataset utd_mhad --data_folder "$data" --data_split "$split" --modality_t video \
    --modality_s accel --path_t "$teacher" --distill dask --model_s resnet18_gaf --batch_size 16 --epochs 100 \
    --lr_decay_epochs 50,75 "${@:4}"
