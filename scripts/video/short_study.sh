#!/usr/bin/env bash
# A short study on real clips: a TSM-ResNet18 teaches a TSM-MobileNetV2, alone and with DIST on the scores of every frame
# as in the published recipe, on the depth videos of UTD-MHAD: 27 classes, cross-subject (431 clips of four people train,
# 430 of the other four test), 8 frames of 48 px, from scratch with AdamW and two decays; 48 epochs for the teacher, 24 for
# the students, two seeds, last epoch. Then the student of the first seed is written as a distillation checkpoint under
# OpenMMLab's keys, extracted from it again, and tested with three crops.
#   bash scripts/video/short_study.sh FOLDER_OF_CLIPS SAVE_ROOT [EPOCHS of a student, at least 4 [flags of every training]]
# SGD with the published rates (0.02, classifier fivefold) stays at chance on so few clips. Cost: 70 minutes on one core
# with native bf16. An interrupted study resumes where it stopped. Depth, not RGB, and far from Kinetics
# in size: its results cannot be compared with published ones.
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
clips=${1:?folder of the clips aA_sS_tT_color.avi}
save=${2:?folder for the runs}
epochs=${3:-24}
extra=("${@:4}")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
lists=$save/lists
if [ -n "$dry_run" ]; then
    lists=$(mktemp -d)
    trap 'rm -rf "$lists"' EXIT
fi
mkdir -p "$lists"
"$PYTHON" scripts/video/utd_lists.py "$clips" "$lists"
data=(--dataset video --data_folder "$clips" --train_list "$lists/train.txt" --test_list "$lists/test.txt"
    --image_size 48 --short_side 54 --num_segments 8 --no_flip --frame_cache "$save/frames" --num_workers 0)
recipe=(--batch_size 8 --optimizer adamw --learning_rate 5e-4 --weight_decay 0.01 --clip_grad 5 --train_crop multiscale5
    --tb_backend none)
train train_teacher.py "${data[@]}" "${recipe[@]}" --epochs "$((2 * epochs))" \
    --lr_decay_epochs "$((epochs * 4 / 3)),$((epochs * 5 / 3))" --model tsm:ResNet18 --save_root "$save" ${extra[@]+"${extra[@]}"}
end_of_dry_run
teacher=$(ls "$run"/*_best.pth)
for trial in 0 1; do
    train train_student.py "${data[@]}" "${recipe[@]}" --epochs "$epochs" \
        --lr_decay_epochs "$((epochs * 2 / 3)),$((epochs * 5 / 6))" --model_s tsm_mobilenetv2 --path_t "$teacher" \
        --distill vanilla,dist --weight dist=1 div=0 --dist_tau 1 --frame_logits --trial "$trial" --save_root "$save" \
        ${extra[@]+"${extra[@]}"}
    [ "$trial" = 1 ] || student=$(grep _dist_ <<<"$results")
done
"$PYTHON" scripts/video/to_kd_checkpoint.py "$student"/*_last.pth "$teacher" "$save/epoch_$epochs.pth"
"$PYTHON" scripts/convert_kd_ckpt_to_student.py "$save/epoch_$epochs.pth"
"$PYTHON" test_model.py --model tsm_mobilenetv2 --path "$save/epoch_${epochs}_student.pth" "${data[@]}" --crops three \
    --crop_size 54 | tee "$save/three_crops.txt"
"$PYTHON" scripts/make_table.py --root "$save" --out results/video_utd_mhad_depth_short.md \
    --title "UTD-MHAD depth videos, short schedule: TSM-ResNet18 teaches TSM-MobileNetV2"
{
    printf '\nThe distilled student of seed 0 (last epoch), extracted from a distillation checkpoint and tested with three crops of 54 px:\n\n```\n'
    grep -E 'top-1|samples|seen' "$save/three_crops.txt" | sed "s#$save/##"
    printf '```\n'
} >>results/video_utd_mhad_depth_short.md
