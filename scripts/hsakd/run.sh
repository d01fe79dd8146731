# Sourced by the tables beside it: cell NAME PUBLISHED COMMAND... lists a cell, or runs it if its name matches $1.
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
pattern=${1:-}
cell() {
    local name=$1 published=$2
    shift 3 # and the word python
    if [ -z "$pattern" ]; then
        printf '%-44s published %s\n' "$name" "$published"
    elif [[ $name =~ $pattern ]]; then
        echo "== $name, published $published"
        "$PYTHON" "$@"
    fi
}
