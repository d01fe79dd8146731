#!/usr/bin/env bash
# Benchmark of a CUDA device in one table: bash scripts/bench/bench_gpu.sh [FILE.json]. Planned for under 9 minutes on one H200; not run on one yet.
# Tests marked gpu, the baseline, ours, every switch, cache, lanes and the floor; then, planned for one of the minutes, a step of
# HSAKD and of DPCD compared with the published one, in a separate table (FILE_hsakd.json). Random images and weights: nothing is
# downloaded. PYTHON names an interpreter with the packages of requirements.txt; by default scripts/setup.sh makes one. FAST=1 uses toy
# networks to test the script (also without a GPU).
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[[ -n "${PYTHON:-}" ]] || source scripts/setup.sh
OUT=${1:-results/bench_gpu.json}
MORE=()
HSAKD=(--rounds 3 --steps 10)
TURNS=(--steps 50 --warmup 10 --rounds 3 --together --check)
if [[ -n "${FAST:-}" ]]; then
  MORE=(--pair resnet8:resnet8 --batch_size 8 --images 64)
  TURNS=(--steps 1 --warmup 0 --rounds 1 --together --check)
  HSAKD=(--methods dpcd --rounds 1 --steps 1 --batch_size 2)
fi
measure() { "$PYTHON" scripts/bench/bench.py ${MORE[@]+"${MORE[@]}"} "${TURNS[@]}" "$@" --json "$OUT" --merge > "$OUT.log" || { cat "$OUT.log"; exit 1; }; }

rm -f "$OUT"
echo "== tests that need a CUDA device"
"$PYTHON" -m pytest -q -m gpu tests || echo "   failed: the following numbers may be wrong"
echo "== baseline, ours, floor"
measure --methods kd,simkd --baseline --floor
echo "== halves, cache, lanes"
measure --bare --warm_cache 64 --lanes kd,at,simkd --light
echo "== switches"
SWITCHES=${FAST:+channels_last,fused_optimizer}
measure --switches ${SWITCHES:+"$SWITCHES"} --light
"$PYTHON" scripts/bench/bench.py --show "$OUT"
echo "== HSAKD and DPCD"
"$PYTHON" scripts/bench/bench_hsakd.py "${HSAKD[@]}" --json "${OUT%.json}_hsakd.json"
rm -f "$OUT.log"
