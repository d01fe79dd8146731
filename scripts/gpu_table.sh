#!/usr/bin/env bash
# SimKD's table on one GPU, in phases that stop by themselves after 8 minutes and resume when called again; no network is needed.
#   bash scripts/gpu_table.sh plan                                     prints what each phase needs and leaves
#   bash scripts/gpu_table.sh PHASE DATA_FOLDER [flags of training]    PHASE: bench, teacher, resnet8x4, vgg8, ShuffleV2_1_5, table
# bench: tests that need CUDA, and the benchmark. teacher: resnet32x4, 240 epochs. Then every row of the table for one student,
# as lanes of one process. table: what is finished next to the published numbers. Exit code 75: call the phase again.
# Not run on a GPU yet: the minutes of the plan are goals. SAVE_ROOT (./save) holds the runs; LIMIT (480) is a phase's seconds.
case ${1:-} in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
phases=(bench teacher resnet8x4 vgg8 ShuffleV2_1_5 table)
phase=${1:-plan}
data=${2:-}
if [ "$phase" = plan ]; then
    size="not found in ${data:-DATA_FOLDER}"
    [ -z "$data" ] || [ ! -f "$data/cifar100.npz" ] || size="$(($(wc -c <"$data/cifar100.npz") / 1048576)) MiB"
    echo "every phase: this repository; Python 3.11 or 3.12 with requirements.txt, active as a virtual environment"
    echo "bench: no data (goal 3 minutes); leaves SAVE_ROOT/bench_gpu.json"
    echo "teacher: cifar100.npz ($size; goal 4 minutes); leaves the teacher's run in SAVE_ROOT/teachers"
    echo "resnet8x4, vgg8, ShuffleV2_1_5: cifar100.npz and the teacher's run (8 minutes a call, several calls); leave runs"
    echo "table: SAVE_ROOT (1 minute); leaves SAVE_ROOT/gpu_table.md"
    exit 0
fi
if [[ " ${phases[*]} " != *" $phase "* ]] || [ -z "$data" ]; then
    echo "gpu_table.sh: '$*' is not a phase and a data folder: type plan, or one of ${phases[*]} and the folder of cifar100.npz" >&2
    exit 2
fi
extra=("${@:3}")
data=$(cd "$data" && pwd) || exit 2
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
save=${SAVE_ROOT:-./save}
case $phase in bench | table) end_of_dry_run ;; esac
[ -n "$dry_run" ] || mkdir -p "$save"
said=$save/gpu_table_teacher.log # of the phase teacher: it names the run that teaches
limit=${LIMIT:-480}
common=(--data_folder "$data" --save_root "$save" ${extra[@]+"${extra[@]}"})

# training saves its state when it is terminated; a minute of the limit is left for that
limited() {
    local code=0 time=$((limit > 120 ? limit - 60 : limit)) started=$SECONDS
    timeout --signal=TERM --kill-after="$((limit > 120 ? 50 : limit))" "$time" "$@" || code=$?
    # killed before its step ended; the state of its last epoch is there
    [ "$code" != 137 ] || [ $((SECONDS - started)) -lt "$time" ] || code=124
    case $code in
        0) echo "$phase: finished" ;;
        124 | 130 | 143) echo "$phase: out of time; run the same command again to resume" && exit 75 ;;
        *) exit "$code" ;;
    esac
}

case $phase in
    bench) PYTHON=$PYTHON limited bash scripts/bench/bench_gpu.sh "$save/bench_gpu.json" ;;
    teacher)
        limited "$PYTHON" train_teacher.py --dataset cifar100 --model resnet32x4 --epochs 240 --batch_size 64 \
            --learning_rate 0.05 --lr_decay_epochs 150,180,210 --weight_decay 5e-4 "${common[@]}" | (
            trap '' TERM INT
            exec tee -a "$([ -n "$dry_run" ] && echo /dev/null || echo "$said")"
        )
        ;;
    table)
        "$PYTHON" scripts/make_table.py --root "$save" --dataset cifar100 --published simkd --out "$save/gpu_table.md" \
            --title "SimKD's table, trained here"
        ;;
    *)
        teacher=$(result_of "$said" 2>/dev/null || true)
        teacher=${teacher:-$save/teachers/models/resnet32x4_vanilla}/resnet32x4_best.pth # the latter may be a published one
        [ -f "$teacher" ] || end_of_dry_run
        [ -f "$teacher" ] || { echo "no teacher at $teacher: run the phase teacher first" >&2 && exit 2; }
        limited "$PYTHON" scripts/run_table.py simkd --only "$phase" --lanes 11 -- --path_t "$teacher" "${common[@]}"
        ;;
esac
