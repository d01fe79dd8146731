#!/usr/bin/env bash
# A short study on UTD-MHAD, cross-subject: a multi-scale TRN over BN-Inception, from scratch on clips of 64 px, teaches
# two networks that read the accelerometer, each alone, with KD and with DASK, three seeds; and a student of Berkeley MHAD.
#   bash scripts/vskd/short_study.sh UTD_FOLDER BERKELEY_FOLDER SAVE_ROOT [CLIP_CACHE [flags of every training]]
# Cost: about 90 minutes on one core with native bf16. Published recipe (100 epochs, 224 px, ImageNet weights):
# teacher.sh and student.sh. Writes results/vskd_utd_mhad_short.md, _confusion.png, _cost.md, vskd_berkeley_short.md.
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
utd=${1:?folder of UTD-MHAD}
berkeley=${2:?folder of Berkeley MHAD}
save=${3:?folder for the runs}
cache=${4:-./cache/clips}
extra=("${@:5}")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
common=(--dataset utd_mhad --data_folder "$utd" --save_root "$save" --clip_cache "$cache" --image_size 64)

train train_teacher.py "${common[@]}" --modality video --model trn_bninception --batch_size 8 --epochs 24 \
    --lr_decay_epochs 16,21 --optimizer adamw --learning_rate 5e-4 --weight_decay 0.01 --clip_grad 5 ${extra[@]+"${extra[@]}"}
end_of_dry_run
teacher=$run
"$PYTHON" train_student.py "${common[@]}" --modality_t video --modality_s accel --window 48 \
    --path_t "$teacher/trn_bninception_last.pth" --model_s resnet18_gaf,sensor_cnn --distill vanilla,kd,dask --trials 3 \
    --epochs 20 --lr_decay_epochs 12,17 --learning_rate 0.05 --clip_grad 5 ${extra[@]+"${extra[@]}"}
"$PYTHON" train_student.py --dataset berkeley_mhad --data_folder "$berkeley" --save_root "$save/berkeley" \
    --modality_s accel --distill vanilla --model_s sensor_cnn --window 64 --trials 3 --epochs 20 --lr_decay_epochs 12,17 --learning_rate 0.05 \
    ${extra[@]+"${extra[@]}"}
"$PYTHON" scripts/vskd/report.py --root "$save" --data_folder "$utd" --clip_cache "$cache" \
    --berkeley_root "$save/berkeley" --berkeley_folder "$berkeley" --out results/vskd
