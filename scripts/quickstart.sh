#!/usr/bin/env bash
# The whole pipeline on real images, without a download: the handwritten digits of scikit-learn. A teacher learns from
# all training images; students get the labels of a tenth of them and train alone, with KD and with SimKD, three seeds each.
# Prints one line per run, a table and a summary, and writes a figure of the curves.
#   bash scripts/quickstart.sh [-v] [flags of every training]     e.g. --overwrite, or --trial 3 for three other seeds
# -v shows the logs of training. Runs are stored in save/quickstart, or in --save_root. One thread by default, so that the numbers
# do not depend on the number of cores (OMP_NUM_THREADS changes it). The setting was chosen on the same 360 test images.
verbose=
extra=()
for word in "$@"; do
    case "$word" in
        -v | --verbose) verbose=1 ;;
        *) extra+=("$word") ;;
    esac
done
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
export PYTHON verbose logs

# one line for each run that ends: "kd, seed 1: 98.15 %, 0:12"
ends() {
    awk -v name="$1" '
        /last epoch Acc@1/ {
            who = name
            if (match($0, /^\[[^]]*\] /)) who = substr($0, 2, RLENGTH - 3)
            if (who == "vanilla") who = "student alone"
            sub(/.*last epoch Acc@1 /, ""); top = $0; sub(/,.*/, "", top); time = $NF
        }
        /result in / {
            match($0, /_(trial|r[^_]*_a[^_]*_b[^_]*)_[^_\/]*/)  # of a teacher, of a student
            seed = substr($0, RSTART, RLENGTH); sub(/.*_/, "", seed)
            print who ", seed " seed ": " top " %, " time
        }
        /already finished: / { match($0, /[^\/]* holds the result/); print "finished before: " substr($0, RSTART, RLENGTH - 17) }
        { fflush() }'
}

# reported NAME LOG PROGRAM ARGUMENTS...: a training; without -v one line a run is shown. Leaves LOG, and LOG.done or code
reported() {
    local code=0
    "$PYTHON" "${@:3}" 2>&1 | tee "$logs/$2" | if [ -n "$verbose" ]; then cat; else ends "$1"; fi || code=${PIPESTATUS[0]}
    [ -d "$logs" ] || return 1 # the quickstart was ended
    [ "$code" = 0 ] && touch "$logs/$2.done" && return
    # two processes that fail for one reason say it once
    [ -n "$verbose" ] || ! mkdir "$logs/said" 2>/dev/null || cat "$logs/$2" >&2
    echo "$code" >"$logs/code"
    return "$code"
}

# job teacher, or a method, and flags of every training. What reads the teacher waits for it
job() {
    local common=(--dataset digits --image_size 16 --batch_size 32 --save_root ./save/quickstart) teacher=
    local student=(--model_s resnet8 --few_ratio 0.1 --epochs 60 --lr_decay_epochs 40,52 --eval_freq 4 --trials 3)
    until [[ $1 == teacher || $1 == vanilla || -e $logs/teacher.done ]]; do
        [[ -d $logs && ! -e $logs/code ]] || return 1
        sleep 0.2
    done
    teacher=$(teacher_of "$logs/teacher")
    case $1 in
        teacher) reported teacher teacher train_teacher.py "${common[@]}" --model resnet20 --epochs 12 --lr_decay_epochs 8,10 "${@:2}" ;;
        vanilla) reported "student alone" vanilla train_student.py "${common[@]}" "${student[@]}" --distill vanilla "${@:2}" ;;
        next) printf ' %q' train_student.py "${common[@]}" "${student[@]}" --path_t "$teacher" --distill crd "${@:2}" ;;
        *) reported "$1" "$1" train_student.py "${common[@]}" "${student[@]}" --path_t "$teacher" --distill "$1" "${@:2}" ;;
    esac
}

# teacher_of LOG: the teacher's checkpoint, once it is trained; the log names its folder
teacher_of() {
    local folder
    folder=$(result_of "$1" 2>/dev/null) && [ -n "$folder" ] && echo "$folder/resnet20_best.pth" || true
}
export -f job reported ends results_of result_of teacher_of

echo "Training a teacher (resnet20) on all digits, and nine students (resnet8) on a tenth of them"
# two at a time; in this order, the two processes end at about the same time
students="vanilla simkd kd"
[ -z "$dry_run" ] || students=vanilla
printf '%s\n' teacher $students |
    xargs -P 2 -I{} bash -c 'set -euo pipefail; job {} "$@"' job ${extra[@]+"${extra[@]}"} ||
    exit "$(cat "$logs/code" 2>/dev/null || echo 1)"
end_of_dry_run
teacher=$(teacher_of "$logs/teacher")
save=${teacher%/teachers/models/*}

echo
"$PYTHON" scripts/make_table.py --root "$save" --dataset digits --in_words \
    --columns "method,last epoch=top-1 in % (last epoch),gain,parameters,runs"
"$PYTHON" scripts/plot.py curves --root "$save" --dataset digits --out "$save/quickstart.png"
echo
echo "Next, another method in the same setting; the quickstart's command then shows it in the table:"
printf '  %s' "$PYTHON"
job next ${extra[@]+"${extra[@]}"}
echo
