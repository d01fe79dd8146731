#!/usr/bin/env bash
# Sourced by the other scripts: leaves a Python with the requirements in $PYTHON; with RETORT_REQUIREMENTS=extra before `source`
# those of requirements-extra.txt too.
# Run by itself it only installs; `bash scripts/setup.sh --cpu` takes the CPU build of torch (of RETORT_TORCH_INDEX) and no
# package that needs a GPU.
# Uses the active virtual environment if there is one, else makes .venv in the repository. Needs Python 3.11 or 3.12.
set -euo pipefail
cpu=""
[ "${BASH_SOURCE[0]}" = "$0" ] && [ "${1:-}" = --cpu ] && cpu=1
# a script whose first word is ${1:?some file or folder} cannot mean a flag by it
first=$(sed -n 's/^[a-z_]*=\${1:?\(.*\)}$/\1/p' -- "$0" 2>/dev/null || true)
if [ -n "$first" ] && [[ ${1:-} == -* ]]; then
    echo "$(basename "$0"): '$1' is a flag, and the first word must be the $first: flags come last" >&2
    exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
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
            echo "installing $file with the CPU build of torch"
            "$PYTHON" -m pip install --quiet --disable-pip-version-check torch torchvision \
                --index-url "${RETORT_TORCH_INDEX:-https://download.pytorch.org/whl/cpu}" ||
                echo "no CPU build of torch could be fetched: the usual one follows" >&2
            "$PYTHON" -m pip install --quiet --disable-pip-version-check -r <(grep -v '^nvidia-' "$file")
        else
            echo "installing $file (with requirements.txt comes the CUDA build of torch, about 5 GB once unpacked)"
            "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$file"
        fi
        cp "$file" "$stamp"
    fi
done

# result_of LOG: the folder that the last training in it names as its result
result_of() {
    sed -n 's/^result in //p; s/^already finished: \(.*\) holds the result.*/\1/p' "$1" | tail -n 1
}
