#!/usr/bin/env bash
# Two hosts on one machine: two Linux network namespaces with separate addresses, a torchrun in each, one run over both.
# The second host is killed during the run and started again; the run resumes from its last checkpoint and finishes.
#   bash scripts/dev/two_hosts.sh SAVE_ROOT [arguments of train_teacher.py]
# Runs in $PYTHON, else the active virtual environment, else .venv, else python3.
# Needs the right to make network namespaces (root, or CAP_NET_ADMIN and CAP_SYS_ADMIN) and iproute2; exit code 77 without.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
save=${1:?folder for the run}
shift
fallback=$PWD/.venv/bin/python
[ -x "$fallback" ] || fallback=python3
PYTHON=${PYTHON:-${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}}
PYTHON=${PYTHON:-$fallback}
a=retort-a-$$ b=retort-b-$$ port=29400
addresses=(10.77.0.1 10.77.0.2)
mkdir -p "$save"

# every process of a host: torchrun and its workers, which are in sessions of their own
switch_off() { ip netns pids "$1" 2>/dev/null | xargs -r kill -KILL 2>/dev/null || true; }
cleanup() {
    for name in "$a" "$b"; do
        switch_off "$name"
        ip netns del "$name" 2>/dev/null || true
    done
}
launchers=()
trap cleanup EXIT

if ! { ip netns add "$a" && ip netns add "$b"; } 2>/dev/null; then
    echo "needs the right to make network namespaces" >&2
    exit 77
fi
ip link add va netns "$a" type veth peer name vb netns "$b"
for host in a b; do
    name=${!host}
    [ "$host" = a ] && address=${addresses[0]} || address=${addresses[1]}
    ip -n "$name" link set lo up
    ip -n "$name" addr add "$address/24" dev "v$host"
    ip -n "$name" link set "v$host" up
done

start() { # host number, namespace, interface; further arguments are the script's
    local number=$1 name=$2 interface=$3
    shift 3
    # unshared: with a store shared between rounds, torchrun's nodes do not find each other again after one was replaced
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 GLOO_SOCKET_IFNAME=$interface OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} ip netns exec "$name" \
        "$PYTHON" -m torch.distributed.run --nnodes 2 --nproc_per_node 1 --max_restarts 3 --rdzv_backend c10d \
        --rdzv_endpoint "${addresses[0]}:$port" --rdzv_id "retort-$$" --local_addr "${addresses[$number]}" \
        --rdzv_conf "is_host=$([ "$number" = 0 ] && echo 1 || echo 0),keep_alive_interval=1" \
        train_teacher.py --dataset digits --model resnet8 --few_ratio 0.1 --batch_size 40 --epochs 12 \
        --lr_decay_epochs 9 --tb_backend none --save_root "$save" "$@" >>"$save/host$number.log" 2>&1 &
    launchers[number]=$!
}
rows() { cat "$save"/teachers/models/*/metrics.jsonl 2>/dev/null | wc -l; }

start 0 "$a" va "$@"
start 1 "$b" vb "$@"
for _ in $(seq 600); do
    [ "$(rows)" -ge 2 ] && break
    kill -0 "${launchers[0]}" 2>/dev/null || { cat "$save/host0.log"; exit 1; }
    sleep 0.1
done
switch_off "$b"
wait "${launchers[1]}" 2>/dev/null || true
echo "host 1 killed after $(rows) epochs"
start 1 "$b" vb "$@"
echo "host 1 started again"
wait "${launchers[0]}" || { cat "$save/host0.log"; exit 1; }
wait "${launchers[1]}" || { cat "$save/host1.log"; exit 1; }
grep -h "continuing from" "$save/host0.log"
echo "$(rows) epochs"
