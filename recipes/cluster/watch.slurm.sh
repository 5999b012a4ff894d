#!/bin/bash
#SBATCH --job-name=rlhf-loop-watch
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --dependency=singleton
# Looks once, makes a round when enough feedback has arrived, and queues itself to look again an hour later.
#   sbatch recipes/cluster/watch.slurm.sh recipes/quickstart.yaml
# No GPU is held while people think: the job ends, and the next one begins later (WATCH_EVERY, default now+1hour).
# A round that the time limit interrupts goes on in the next job. `scancel --name rlhf-loop-watch` ends the chain.
# The store: PostgreSQL, or SQLite on a file system that the nodes share (see recipes/cluster/slurm.sh). It has not been
# run on a cluster yet.
set -euo pipefail
RECIPE=${1:?usage: sbatch watch.slurm.sh RECIPE [key.sub=value ...]}
shift
# The script as it was submitted: Slurm runs a copy of it, which has no place among the recipes.
SCRIPT=${WATCH_SCRIPT:-recipes/cluster/watch.slurm.sh}
sbatch --begin="${WATCH_EVERY:-now+1hour}" "$SCRIPT" "$RECIPE" "$@"
rlhf-loop watch "$RECIPE" "$@" --once &
WATCHER=$!
trap 'kill -TERM "$WATCHER"; wait "$WATCHER"' TERM
wait "$WATCHER"
