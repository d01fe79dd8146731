# Sourced by setup.sh: prints --help, and separates a script's words from its flags. Sets $dry_run if --dry_run is given.
# scripts/flags.txt lists how many values a flag takes: 0, or + for several; flags that are not listed take one.
words=()
flags=()
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help)
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    --)
        flags+=("$@")
        break
        ;;
    --dry_run | --dry-run) dry_run=yes ;;
    esac
    if [[ $1 != -* ]]; then
        words+=("$1")
        shift
        continue
    fi
    flag=$1
    flags+=("$flag")
    shift
    name=${flag#--} values=0
    [[ $flag == *=* ]] || values=$(sed -n "s/^--${name//-/_} //p" "$root/scripts/flags.txt")
    while [ "$values" != 0 ] && [ $# -gt 0 ] && [[ $1 != -[a-zA-Z-]* ]]; do
        flags+=("$1")
        shift
        [ "$values" = + ] || break
    done
done
slots=$(sed -n 's/^[a-z_]*=\${\([0-9]*\):[?-].*/\1/p' "$0" | sort -n | tail -n 1)
required=$(sed -n 's/^[a-z_]*=\${\([0-9]*\):?.*/\1/p' "$0" | sort -n | tail -n 1)
if [ "${#words[@]}" -lt "${required:-0}" ]; then
    missing=$(sed -n "s/^[a-z_]*=\${$((${#words[@]} + 1)):?\(.*\)}\$/\1/p" "$0")
    echo "$(basename "$0"): argument $((${#words[@]} + 1)) is missing, the $missing; --help lists all arguments" >&2
    exit 2
fi
while [ "${#words[@]}" -lt "${slots:-0}" ]; do # an optional word left out
    words+=("")
done
set -- ${words[@]+"${words[@]}"} ${flags[@]+"${flags[@]}"}
