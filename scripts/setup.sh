#!/usr/bin/env bash
# Sourced by the other scripts: installs requirements.txt and sets $PYTHON to the interpreter that has them. With
# RETORT_REQUIREMENTS=extra before `source`, it also installs requirements-extra.txt.
# Run directly, it only installs. `bash scripts/setup.sh --cpu` leaves DALI out, and takes torch from the package index
# RETORT_TORCH_INDEX, if that address is set; for Linux, the usual index has the CUDA build.
# Uses the active virtual environment if there is one, else makes .venv in the repository. Needs Python 3.11 or 3.12.
set -euo pipefail
cpu=""
[ "${BASH_SOURCE[0]}" = "$0" ] && [ "${1:-}" = --cpu ] && cpu=1
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
dry_run=""
# A script that hands all its words on to one program leaves --help and the order of words to that program. Others print their
# header, and take flags before, between and behind their words: here the words come first, then the flags with their values.
# The header is printed first, all the same: nothing is installed for a question.
if ! grep -q '^exec .*"\$@"$' "$0"; then
    source "$root/scripts/words.sh"
elif [[ " $* " =~ " -h "|" --help " ]]; then
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    echo
    [ -e "${VIRTUAL_ENV:-$root/.venv}/.retort-requirements.txt" ] || exit 0
fi
if [ -n "${VIRTUAL_ENV:-}" ]; then
    PYTHON="$VIRTUAL_ENV/bin/python"
else
    PYTHON="$root/.venv/bin/python"
    if [ ! -x "$PYTHON" ]; then
        for candidate in python3.12 python3.11 python3; do
            if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
                base=$candidate
                break
            fi
        done
        : "${base:?Retort needs Python 3.11 or 3.12 on the PATH}"
        echo "making a virtual environment in .venv with $("$base" --version)"
        "$base" -m venv .venv
    fi
fi
files=(requirements.txt)
[ "${RETORT_REQUIREMENTS:-}" = extra ] && files+=(requirements-extra.txt)
for file in "${files[@]}"; do
    stamp="$(dirname "$PYTHON")/../.retort-$file"
    if ! cmp -s "$file" "$stamp"; then
        if [ -n "$cpu" ]; then
            echo "installing $file without DALI"
            [ -z "${RETORT_TORCH_INDEX:-}" ] || "$PYTHON" -m pip install --quiet --disable-pip-version-check torch torchvision \
                --index-url "$RETORT_TORCH_INDEX"
            "$PYTHON" -m pip install --quiet --disable-pip-version-check -r <(grep -v '^nvidia-' "$file")
        else
            echo "installing $file (with requirements.txt comes the CUDA build of torch, about 5 GB once unpacked)"
            if ! "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$file"; then
                [ "$file" = requirements-extra.txt ] || exit 1
                # what cannot be had is named: its tests are skipped, and commands that need it say so
                grep -v '^#' "$file" | while read -r package; do
                    "$PYTHON" -m pip install --quiet --disable-pip-version-check "$package" || echo "not installed: $package" >&2
                done
            fi
        fi
        cp "$file" "$stamp"
    fi
done

# results_of LOG: the folders that the trainings in it name as their results, in order; result_of: the last one
results_of() { sed -nE -e 's/^(\[[^]]*\] )?result in //p' -e 's/^(\[[^]]*\] )?already finished: (.*) holds the result.*/\2/p' "$1"; }
result_of() { results_of "$1" | tail -n 1; }

# train PROGRAM FLAGS...: trains, and leaves in $results the folders that this very training names, in $run the last one; other
# runs of the same networks may lie next to them. What reads the messages outlives a signal that the run answers by saving its
# state. A dry run leaves both empty.
train() {
    local log code=0
    log=$(mktemp)
    exec 8>"$log" 9<"$log"
    rm -f "$log" # at once: it stays readable, and remains nowhere if the script is killed
    "$PYTHON" "$@" 8>&- 9<&- | (
        trap '' TERM INT
        exec tee /dev/fd/8
    ) || code=$?
    results=$(results_of /dev/fd/9)
    exec 8>&- 9<&-
    run=$(tail -n 1 <<<"$results")
    [ "$code" = 0 ] || exit "$code"
    [ -n "$dry_run" ] || : "${run:?the training names no folder as its result}"
}

# into FILE: what is printed is appended to a file; a dry run shows it. It outlives a signal that a training answers by saving.
into() (
    trap '' TERM INT
    [ -z "$dry_run" ] || exec cat
    mkdir -p "$(dirname "$1")"
    exec cat >>"$1"
)

# run_or_skip PROGRAM FLAGS...: in a dry run, what starts from a teacher or backbone that is not trained yet is skipped, and
# what trains nothing is left out
run_or_skip() {
    if [ -n "$dry_run" ] && [[ $1 != train_* ]]; then
        echo "dry run: left out, as $1 trains nothing"
        return
    fi
    local word before=""
    for word in "$@"; do
        if [ -n "$dry_run" ] && [[ $before =~ ^--(path_t|pretrained.backbone)$ ]] && [ ! -e "$word" ] && [[ $word != t*:* ]]; then
            echo "dry run: skipped, as $word is not trained yet"
            return
        fi
        before=$word
    done
    "$PYTHON" "$@"
}

# end_of_dry_run: what follows reads runs, which a dry run does not write
end_of_dry_run() {
    if [ -n "$dry_run" ]; then
        echo "dry run: the following commands read the runs of those above and are skipped"
        exit 0
    fi
}
