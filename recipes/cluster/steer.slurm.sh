#!/bin/bash
#SBATCH --job-name=rlhf-loop-steer
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
# One CPU steers a run: it submits each stage as a job of its own (`launch: slurm`), and waits while people answer.
#   sbatch recipes/cluster/steer.slurm.sh recipes/quickstart.yaml cluster_profile=recipes/cluster/profile.yaml
# `rlhf-loop submit RECIPE --slurm --stages` submits this script with what a profile says.
# Two minutes before its time limit it leaves the stage that runs alone, and queues itself again; the next attempt
# follows that stage where it is. After a node's death Slurm queues it. `scancel` of this job cancels its stage too.
# What it says is in logs/slurm-JOB/attempt-N/steer.log (RLHF_LOOP_LOGS).
set -euo pipefail
if [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "error: this is a job for Slurm: sbatch recipes/cluster/steer.slurm.sh RECIPE [key.sub=value ...]. Without Slurm: rlhf-loop run RECIPE" >&2
  exit 1
fi
if [ $# -eq 0 ]; then
  echo "error: no recipe: sbatch recipes/cluster/steer.slurm.sh RECIPE [key.sub=value ...]" >&2
  exit 1
fi
LOGS=${RLHF_LOOP_LOGS:-logs}/slurm-$SLURM_JOB_ID/attempt-${SLURM_RESTART_COUNT:-0}
mkdir -p "$LOGS"
echo "attempt ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST; its log: $LOGS/steer.log"

rlhf-loop run "$@" launch=slurm --stay >"$LOGS/steer.log" 2>&1 &
LOOP=$!
LIMIT= SIGNALLED=
trap 'SIGNALLED=1 LIMIT=reached; kill -USR1 "$LOOP" || true' USR1 # it leaves its stage alone
trap 'SIGNALLED=1; kill -TERM "$LOOP" || true' TERM # scancel: it cancels its stage
while :; do
  SIGNALLED= CODE=0
  wait "$LOOP" || CODE=$?
  [ -n "$SIGNALLED" ] || break # that was a trap; now the loop
done
if [ "$CODE" -ne 0 ]; then
  tail -n 5 "$LOGS/steer.log" || true
  if [ -n "$LIMIT" ]; then
    echo "stopped by its time limit; queued again"
    scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$CODE"
