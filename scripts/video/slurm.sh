#!/usr/bin/env bash
# Any script of this folder as a SLURM job on one node of eight GPUs, one process per GPU:
#   KINETICS=DIR sbatch --partition=PARTITION scripts/video/slurm.sh tsm_distil TEACHER.pth
# The published teachers: bash scripts/teachers/fetch_teachers.sh tsm_resnet50 tsn_swin_base
#SBATCH --job-name=video
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=64
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" && exit ;; esac
name=${1:?tsm_teacher, tsm_student, tsm_distil, tsn_teacher, tsn_student or tsn_distil}
shift
cd "${SLURM_SUBMIT_DIR:-.}"
export GPUS=${GPUS:-0,1,2,3,4,5,6,7}
# since Slurm 22.05 a step does not inherit the cores of its job
exec srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-64}" bash "scripts/video/$name.sh" "$@"
