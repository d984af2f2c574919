#!/usr/bin/env bash
#SBATCH --job-name=hawis_jax
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@300
# The last one: the tasks (not this script) get SIGTERM 5 minutes before the
# time limit, save, and end with status 75.
set -euo pipefail

usage="usage: sbatch [SBATCH_OPTIONS] launch/slurm.sh [--retries=N] -- FLAGS
       launch/slurm.sh --dry-run -- FLAGS

Runs hawis_jax.main with FLAGS in every task of a SLURM job; jax learns from
SLURM who they are. With GPUs, one task for each, all visible to all:
--gpus-per-node=4 --ntasks-per-node=4 (not --gpus-per-task, which hides from a
task the GPU that jax would take). A run that was told to stop (by the time
limit or preemption) and has saved ends with status 75: the job is queued again,
up to N (100) times, and goes on. Any other status is the job's. The Python that
runs is \$PYTHON (python), from the folder of sbatch. --dry-run prints the
command."

die() { echo "error: $1" >&2 && exit 2; }

retries=100 dry_run=false
while (($#)); do
  case "$1" in
    --retries=*) retries=${1#*=} ;;
    --dry-run) dry_run=true ;;
    --help) echo "$usage" && exit ;;
    --) shift && break ;;
    *) die "$1: no such option; --help shows them" ;;
  esac
  shift
done
(($#)) || die "FLAGS: missing, needed is at least -- --config=FILE"
[[ "$retries" =~ ^[0-9]+$ ]] ||
  die "--retries: got '$retries', allowed is a whole number"

# Neither of a task's end kills the others at once: all are saving. And srun no
# longer takes the CPUs from sbatch.
command=(srun --kill-on-bad-exit=0 --wait=60
  ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"}
  "${PYTHON:-python}" -m hawis_jax.main "$@" --distributed)
if "$dry_run"; then echo "${command[*]@Q}" && exit; fi
[[ "${SLURM_JOB_ID-}" ]] || die "SLURM_JOB_ID: missing; start me with sbatch"

export PYTHONUNBUFFERED=1
status=0
"${command[@]}" || status=$?
if ((status == 75 && ${SLURM_RESTART_COUNT:-0} < retries)); then
  echo "preempted and saved: queued again"
  scontrol requeue "$SLURM_JOB_ID" # ends this script, too
fi
exit "$status"
