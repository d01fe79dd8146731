#!/usr/bin/env bash
# End to end in two processes, on real JPEGs: a torchvision:resnet34 teacher trained here, then torchvision:resnet18 alone
# and distilled from it (kd), decoded by Pillow's workers and by DALI; two seeds. In one run a process is killed and
# torchrun restarts all from the last checkpoint.
#   bash scripts/studies/imagenette_study.sh DATA_FOLDER SAVE_ROOT [further flags of every run]
# DATA_FOLDER holds train/<class> and val/<class>, such as a reduced Imagenette (600 + 200 images of 10 classes): a test of
# the pipeline, not of the methods. Finished runs are kept. The table is written to results/imagenette_small_resnet34_resnet18.md.
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
data=${1:?folder with train/ and val/}
save=${2:?folder for the runs}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
common=(--dataset imagenet --data_folder "$data" --image_size 48 --batch_size 32 --epochs 20 --optimizer adamw
    --learning_rate 5e-4 --weight_decay 0.05 --schedule cosine --warmup_epochs 2 --num_workers 2 --save_root "$save" "${@:3}")

several=(-m torch.distributed.run --standalone --nproc_per_node 2 --max_restarts 1)

train "${several[@]}" train_teacher.py "${common[@]}" --model torchvision:resnet34
end_of_dry_run
teacher=$(ls "$run"/*_best.pth)
killed() { compgen -G "$save/students/models/*_kd_*_b:0.0_1_image_size*/$1"; } # a file of the run that is killed
for seed in 0 1; do
    student=(train_student.py "${common[@]}" --model_s torchvision:resnet18 --trial "$seed")
    "$PYTHON" "${several[@]}" "${student[@]}" --distill vanilla
    kd=(--distill kd --path_t "$teacher")
    if [ "$seed" = 1 ] && ! killed parameters.json >/dev/null; then
        "$PYTHON" "${several[@]}" "${student[@]}" "${kd[@]}" &
        launcher=$!
        until grep -q '"epoch": 3' "$(killed metrics.jsonl)" 2>/dev/null; do
            kill -0 "$launcher" 2>/dev/null || wait "$launcher" || exit
            sleep 0.2
        done
        victim=$(pgrep -P "$launcher" | tail -1)
        kill -KILL "$victim"
        echo "killed process $victim after epoch 3"
        wait "$launcher"
    else
        "$PYTHON" "${several[@]}" "${student[@]}" "${kd[@]}"
    fi
    "$PYTHON" "${several[@]}" "${student[@]}" "${kd[@]}" --dali cpu
done
grep "continuing from" "$(killed log.txt)"
"$PYTHON" scripts/make_table.py --root "$save" --out results/imagenette_small_resnet34_resnet18.md \
    --title "Imagenette, reduced to 600 images of 48 px: torchvision:resnet34 teaches torchvision:resnet18 in 2 processes (in kd, seed 1, a process was killed and the run resumed)"
