#!/usr/bin/env bash
# The whole chain on real images in a few minutes, without a download of data: the handwritten digits of scikit-learn.
# Trains a teacher, a student alone, with KD and with SimKD, and prints their table. Runs land in save/, or in --save_root.
# Extra arguments go to every training command, e.g. bash scripts/quickstart.sh --overwrite, or --trial 1
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

common=(--dataset digits --batch_size 64 --lr_decay_epochs 8,10 --epochs 12 --trial 0)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$PYTHON" train_teacher.py "${common[@]}" --model resnet20 "$@" | tee "$log"
# the teacher says where it lies; its name follows the extra arguments
end_of_dry_run
teacher="$(result_of "$log")/resnet20_best.pth"
for method in vanilla kd simkd; do
    path=(--path_t "$teacher")
    [ "$method" = vanilla ] && path=()
    "$PYTHON" train_student.py "${common[@]}" ${path[@]+"${path[@]}"} --distill "$method" --model_s resnet8 "$@"
done
"$PYTHON" scripts/make_table.py --root "${teacher%/teachers/models/*}" --dataset digits
