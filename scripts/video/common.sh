# Sourced by the scripts of this folder: $PYTHON, $KINETICS (the data folder), $SAVE (root of runs), and $GPUS.
# GPUS=0,1,2,3,4,5,6,7 starts one process per GPU in training and tests, as published; --batch_size of a training
# is that of all of them.
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
KINETICS=${KINETICS:?folder with videos_train, videos_val and kinetics400_train_list_videos.txt}
SAVE=${SAVE:-./save}
GPUS=${GPUS:-0}
several=()
[[ "$GPUS" == *,* ]] && several=(--multiprocessing_distributed)
data=(--dataset kinetics400 --data_folder "$KINETICS" --save_root "$SAVE" --gpu_id "$GPUS" --precision fp32
    ${several[@]+"${several[@]}"})

# tested NETWORK FLAGS...: the best epoch of the training above
tested() {
    run_or_skip test_model.py --dataset kinetics400 --data_folder "$KINETICS" --gpu_id "$GPUS" ${several[@]+"${several[@]}"} \
        --path "$run/$1_best.pth" "${@:2}"
}
