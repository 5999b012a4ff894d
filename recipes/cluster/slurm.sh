#!/bin/bash
#SBATCH --job-name=rlhf-loop
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
#SBATCH --open-mode=append
# One launcher a node; rank 0 of all runs the loop, the others take part in each stage.
#   sbatch recipes/cluster/slurm.sh recipes/quickstart.yaml
#   sbatch --gpus-per-node=0 --cpus-per-task=8 recipes/cluster/slurm.sh recipes/smoke.yaml    # CPUs, a process a node
# Three minutes before its time limit the job stops its ranks and queues itself again; when a node dies, Slurm does.
# Either way it goes on where it stopped. What the nodes say is in logs/slurm-JOB/attempt-N/NODE.log (RLHF_LOOP_LOGS).
# `rlhf-loop submit RECIPE --slurm` submits this script with the resources of a profile (recipes/cluster/profile.yaml).
# The run folder must lie on a file system that all nodes share. SQLite's write-ahead log does not work there: the
# store notices and uses a rollback journal; for more than one writer use PostgreSQL (`store: postgresql://...`).
set -euo pipefail
if [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "error: this is a job for Slurm: sbatch recipes/cluster/slurm.sh RECIPE [key.sub=value ...]. Without Slurm: rlhf-loop run RECIPE" >&2
  exit 1
fi
if [ $# -eq 0 ]; then
  echo "error: no recipe: sbatch recipes/cluster/slurm.sh RECIPE [key.sub=value ...]" >&2
  exit 1
fi
MODULE="rlhf_loop run"
if [ "$1" = --stage ]; then # its arguments: one stage of a run that another process steers (`launch: slurm`)
  MODULE=rlhf_loop.stages
  shift
fi
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
LOGS=${RLHF_LOOP_LOGS:-logs}/slurm-$SLURM_JOB_ID/attempt-${SLURM_RESTART_COUNT:-0}
mkdir -p "$LOGS"
echo "attempt ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST; its logs: $LOGS"

# Up to a minute later Slurm may still deliver to a node that came back what was meant for a step of the attempt before,
# whose ranks it ends: two attempts in a row have no number of a step in common.
RANKS=$((${SLURM_RESTART_COUNT:-0} % 2 * 2))
for ((i = 0; i < RANKS; i++)); do srun --output=/dev/null true || true; done

STOPPED=
KILLER=
stop() { # the ranks end by themselves on TERM; a TERM to srun would kill them
  STOPPED="its time limit"
  timeout 20 scancel --signal=TERM "$SLURM_JOB_ID.$RANKS" || true
  (sleep 90 && scancel --signal=KILL "$SLURM_JOB_ID.$RANKS") >/dev/null 2>&1 &
  KILLER=$!
}
trap stop USR1
trap 'STOPPED=scancel' TERM # Slurm ends the ranks

# shellcheck disable=SC2086
srun --kill-on-bad-exit=1 --output="$LOGS/%N.log" \
  ${RLHF_LOOP_CONTAINER:-} python3 -m rlhf_loop.launch.node slurm $MODULE "$@" &
STEP=$!
CODE=0
wait "$STEP" || CODE=$?
if [ -n "$STOPPED" ]; then # that was the trap; now the ranks
  CODE=0
  wait "$STEP" || CODE=$?
  [ -z "$KILLER" ] || kill "$KILLER" || true # not the ranks of the next attempt
fi
if [ "$CODE" -ne 0 ] && [ -z "$STOPPED" ] && ! timeout --foreground 60 srun --kill-on-bad-exit=1 --output=/dev/null true; then
  STOPPED="the death of a node"
fi
if [ "$CODE" -ne 0 ]; then
  tail -n 5 "$LOGS"/*.log || true
  if [ -n "$STOPPED" ] && [ "$STOPPED" != scancel ]; then
    echo "stopped by $STOPPED; queued again"
    scontrol requeue "$SLURM_JOB_ID" || CODE=75 # where a cluster forbids it, the one who steers submits it again
  fi
fi
exit "$CODE"
