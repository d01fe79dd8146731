#!/usr/bin/env bash
# How a teacher without a classifier teaches: a small ViT, trained here on digits, teaches resnet8, which sees a tenth of the labels, three
# seeds: by its own head, and without that head by a linear probe, by class means, and by features alone.
#   bash scripts/studies/headless_study.sh SAVE_ROOT [flags of every training]
# If it is stopped, the same command resumes; finished runs are skipped. Writes results/headless_digits.md.
# Cost: 25 minutes of one core.
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
save=${1:?folder for the runs}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
common=(--dataset digits --image_size 32 --batch_size 32 --tb_backend none)

train train_teacher.py "${common[@]}" --model vit_micro_cifar --epochs 20 --optimizer adamw --learning_rate 0.001 \
    --weight_decay 0.05 --schedule cosine --warmup_epochs 2 --save_root "$save/teacher" --trial 0 "${@:2}"
end_of_dry_run
teacher=$run/vit_micro_cifar_best.pth

student() {
    "$PYTHON" train_student.py "${common[@]}" --path_t "$teacher" --model_s resnet8 --few_ratio 0.1 --epochs 40 \
        --lr_decay_epochs 25,35 --save_root "$save/students" --trial "$trial" "$@"
}

for trial in 0 1 2; do
    student --distill vanilla "${@:2}"
    student --distill kd "${@:2}"
    student --distill kd --teacher_probe linear "${@:2}"
    student --distill kd --teacher_probe means "${@:2}"
    student --distill embed -d 0 "${@:2}"
done
end_of_dry_run
"$PYTHON" scripts/make_table.py --root "$save/students" --dataset digits --out results/headless_digits.md \
    --title "Digits, a tenth of the labels: a small ViT teaches by its own head, by a probe, by class means, by features alone"
