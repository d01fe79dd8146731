# Sourced by the tables next to it: cell NAME PUBLISHED COMMAND... lists a cell, or runs it if it is the one that $1 names or,
# where no cell has that name, if its name matches $1 as a regular expression. $2 and so on go to each of these commands; with
# --save_root, they also read the runs of other cells there, or in save/ if only save/ has them.
table=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
source "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
wanted=${1:-}
more=() place=()
while [ $# -gt 1 ]; do
    shift
    case $1 in
    --save?root) place=(--save_root "${2:?a folder after --save_root}") && shift ;;
    --save?root=*) place=(--save_root "${1#*=}") ;;
    *) more+=("$1") ;;
    esac
done
[[ "$wanted" == -* ]] && wanted="" # flags alone: the cells are listed
names=$(sed -n "s/^cell '\([^']*\)'.*/\1/p" "$table")
is_name=$(grep -cxF -- "$wanted" <<<"$names" || true)
if [ -n "$wanted" ] && [ "$is_name" = 0 ] && ! grep -qE -- "$wanted" <<<"$names" 2>/dev/null; then
    echo "no cell of $(basename "$table") matches '$wanted': without an argument the script lists its cells" >&2
    exit 2
fi
cell() {
    local name=$1 published=$2 command=() word moved
    shift 3 # and the word python
    if [ -z "$wanted" ]; then
        printf '%-44s published %s\n' "$name" "$published"
    elif [ "$name" = "$wanted" ] || { [ "$is_name" = 0 ] && [[ $name =~ $wanted ]]; }; then
        echo "== $name, published $published"
        for word in "$@"; do
            moved=${place[1]:-save}/${word#save/}
            [[ $word != save/* || (-e $word && ! -e $moved) ]] || word=$moved
            command+=("$word")
        done
        [ "$1" = eval_rep.py ] || command+=(${place[@]+"${place[@]}"}) # which trains nothing
        run_or_skip "${command[@]}" ${more[@]+"${more[@]}"}
    fi
}
