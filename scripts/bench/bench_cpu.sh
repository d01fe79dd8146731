#!/usr/bin/env bash
# Writes results/bench_cpu_<dtype>_{baseline,speed,students,methods}: bash scripts/bench/bench_cpu.sh [part ...]; without
# a part, all of them. One thread and processor time, so that other work on the machine changes the figures little;
# about an hour. DTYPE=fp32 measures float32 instead of bf16. Parts of a few minutes each may be measured one by one:
# kd simkd | halves switches cache lanes | students | overheads=NAME,NAME (any methods) | pages
# The part two_cores, three minutes of wall-clock time, needs an idle machine and runs only if named.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[[ -n "${PYTHON:-}" ]] || source scripts/setup.sh
DTYPE=${DTYPE:-bf16}
TO=results/bench_cpu_$DTYPE
into() {
  local file=$1
  shift
  "$PYTHON" scripts/bench/bench.py --precision "$DTYPE" --threads 1 --clock cpu --images 5000 "$@" --check --json "$TO$file.json" --merge
}

kd() { into _baseline --methods kd --baseline --equal_precision --steps 2 --warmup 1 --rounds 3; }
simkd() { into _baseline --methods simkd --baseline --equal_precision --steps 2 --warmup 1 --rounds 3; }
halves() { into _speed --bare --floor --light --steps 4 --warmup 1 --rounds 5; }
switches() {
  into _speed --switches bf16,channels_last,fused_optimizer,allocator,fold_teacher,compile_teacher,compile_student,compile_loss \
    --light --steps 2 --warmup 1 --rounds 3
}
cache() { into _speed --warm_cache 64 --light --steps 3 --warmup 1 --rounds 3; }
lanes() { into _speed --lanes kd,at,sp,simkd --light --steps 2 --warmup 1 --rounds 3; }
students() {
  into _students --students resnet20 resnet32 resnet8x4 wrn_16_2 wrn_40_1 vgg8 MobileNetV2 ShuffleV1 ShuffleV2 ShuffleV2_1_5 \
    --light --steps 1 --warmup 1 --rounds 3
}
two_cores() {
  "$PYTHON" scripts/bench/bench.py --precision "$DTYPE" --threads 2 --methods kd --baseline --bare --warm_cache 32 --images 5000 \
    --light --steps 4 --warmup 1 --rounds 3 --check --json "${TO}_two_cores.json"
}
overheads() { into _methods --methods "$1" --overhead --light --steps 2 --warmup 1 --rounds 3; }

# a page is written from the figures alone
page() {
  [[ -f "$TO$2.json" ]] || return 0
  { echo "# $1"; echo
    echo "Written by \`scripts/bench/bench_cpu.sh\`; all figures are in \`$(basename "$TO$2").json\`. Seconds are those of the ${3:-processor}."; echo
    "$PYTHON" scripts/bench/bench.py --show "$TO$2.json" --markdown; } > "$TO$2.md"
}
pages() {
  page "Steps compared with a plain training loop" _baseline
  page "Settings, cache, several students and the floor" _speed
  page "Steps of every method compared with kd" _methods
  page "The tables' students: automatic settings, and kd compared with a plain loop" _students
  page "Two cores, wall-clock time" _two_cores "wall clock"
}

if [[ $# == 0 ]]; then
  rm -f "$TO"_{baseline,speed,students,methods}.json
  set -- kd simkd halves switches cache lanes students overheads=all pages
fi
for part in "$@"; do
  if [[ $part == overheads=* ]]; then overheads "${part#*=}"; else "$part"; fi
done
