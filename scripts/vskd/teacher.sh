#!/usr/bin/env bash
# The teacher of VSKD: multi-scale TRN over BN-Inception on the colour clips of UTD-MHAD, 8 segments, 224 px, 100 epochs.
#   bash scripts/vskd/teacher.sh UTD_FOLDER [cross_subject|trial] [further flags]
# Published: SGD at 1e-3 from ImageNet weights, times 0.1 at epoch 50, batch 8, dropout 0.5; no accuracy is published in
# the code. Here SGD at 0.01 from scratch, times 0.1 after 50 and 75. Not run at this length: short_study.sh is a schedule for one core.
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
data=${1:?folder of UTD-MHAD}
split=${2:-cross_subject}
exec "$PYTHON" train_teacher.py --dataset utd_mhad --data_folder "$data" --data_split "$split" --modality video \
    --model trn_bninception --batch_size 8 --epochs 100 --learning_rate 0.01 --lr_decay_epochs 50,75 "${@:3}"
