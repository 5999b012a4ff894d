#!/bin/bash
#SBATCH --job-name=rlhf-loop-watch
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --open-mode=append
#SBATCH --no-requeue
#SBATCH --dependency=singleton
# Looks once, makes a round when enough feedback has arrived, and queues itself to look again an hour later.
#   sbatch recipes/cluster/watch.slurm.sh recipes/quickstart.yaml
# No GPU is held while people think: the job ends, and the next one begins later (WATCH_EVERY, default now+1hour).
# A round that the time limit or the death of a node interrupts goes on in the next job, which is queued first of all
# (requeued, a job would queue a second one). `scancel --name rlhf-loop-watch` ends the chain; submitted again, it goes on.
# The store: PostgreSQL, or SQLite on a file system that the nodes share (see recipes/cluster/slurm.sh).
set -euo pipefail
if [ -z "${SLURM_JOB_ID:-}" ]; then
  echo "error: this is a job for Slurm: sbatch recipes/cluster/watch.slurm.sh RECIPE [key.sub=value ...]. Without Slurm: rlhf-loop watch RECIPE" >&2
  exit 1
fi
if [ $# -eq 0 ]; then
  echo "error: no recipe: sbatch recipes/cluster/watch.slurm.sh RECIPE [key.sub=value ...]" >&2
  exit 1
fi
# The script as it was submitted: Slurm runs a copy of it, which has no place among the recipes.
SCRIPT=${WATCH_SCRIPT:-recipes/cluster/watch.slurm.sh}
sbatch --begin="${WATCH_EVERY:-now+1hour}" "$SCRIPT" "$@"
rlhf-loop watch "$@" --once &
WATCHER=$!
trap 'kill -TERM "$WATCHER"; wait "$WATCHER"' TERM
wait "$WATCHER"
