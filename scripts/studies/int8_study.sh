#!/usr/bin/env bash
# Accuracy of int8, with and without quantisation-aware training: resnet20 on complete CIFAR-100 (trained further for ten epochs
# of 40 steps, alone and with resnet56 as teacher), and a sensor network of UTD-MHAD (trained here, then trained further alone and with
# its own float32 version as teacher); two seeds each. Writes results/int8_cifar100.md and results/int8_utd_mhad.md.
#   bash scripts/studies/int8_study.sh STUDENT_RESNET20.pth TEACHER_RESNET56.pth CIFAR_FOLDER UTD_FOLDER SAVE_ROOT [flags]
# Cost: about 15 minutes of one core.
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
student=${1:?path of a resnet20 checkpoint}
teacher=${2:?path of a resnet56 checkpoint}
cifar=${3:?folder with cifar100.npz or the official files}
utd=${4:?folder of UTD-MHAD}
save=${5:?folder for the runs}
extra=("${@:6}")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

sensor=(--dataset utd_mhad --data_folder "$utd" --save_root "$save/utd" --modality_s accel --window 48 --model_s sensor_cnn)
train train_student.py "${sensor[@]}" --distill vanilla --trial 0 --epochs 20 --lr_decay_epochs 12,17 --learning_rate 0.05 --clip_grad 5 \
    ${extra[@]+"${extra[@]}"}
end_of_dry_run
float=$run/sensor_cnn_last.pth
sensor+=(--pretrained "$float" --quantize int8 --epochs 5 --lr_decay_epochs 4 --learning_rate 0.002 ${extra[@]+"${extra[@]}"})
alone=() under=()
for trial in 0 1; do
    train train_student.py "${sensor[@]}" --save_root "$save/utd_alone" --distill vanilla --trial "$trial"
    alone+=("$run/sensor_cnn_last.pth")
    train train_student.py "${sensor[@]}" --save_root "$save/utd_under" --distill kd --path_t "$float" --trial "$trial"
    under+=("$run/sensor_cnn_last.pth")
done
"$PYTHON" scripts/studies/int8_table.py --dataset utd_mhad --data_folder "$utd" --title "UTD-MHAD, accelerometer: sensor_cnn in int8" \
    --out results/int8_utd_mhad.md --row "float32 training" "$float" --row "continued in int8, alone" "${alone[@]}" \
    --row "continued in int8, under the float32 network (kd)" "${under[@]}"

image=(--dataset cifar100 --data_folder "$cifar" --model_s resnet20 --pretrained "$student" --quantize int8 --epochs 10 --lr_decay_epochs 6,8 --max_steps 40 --learning_rate 0.002
    ${extra[@]+"${extra[@]}"})
alone=() under=()
for trial in 0 1; do
    train train_student.py "${image[@]}" --save_root "$save/cifar_alone" --distill vanilla --trial "$trial"
    alone+=("$run/resnet20_last.pth")
    train train_student.py "${image[@]}" --save_root "$save/cifar_under" --distill kd --path_t "$teacher" --skip_validation --trial "$trial"
    under+=("$run/resnet20_last.pth")
done
"$PYTHON" scripts/studies/int8_table.py --dataset cifar100 --data_folder "$cifar" --title "CIFAR-100: resnet20 in int8" \
    --out results/int8_cifar100.md --row "float32 training" "$student" --row "continued in int8, alone" "${alone[@]}" \
    --row "continued in int8, under resnet56 (kd)" "${under[@]}"
