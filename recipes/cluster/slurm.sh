#!/bin/bash
#SBATCH --job-name=rlhf-loop
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
# One launcher a node; rank 0 of all runs the loop, the others take part in each stage.
#   sbatch recipes/cluster/slurm.sh recipes/quickstart.yaml
# The run folder must lie on a file system that all nodes share. SQLite's write-ahead log does not work there: the
# store notices and uses a rollback journal; for more than one writer use PostgreSQL (`store: postgresql://...`).
# A job that is requeued goes on where it stopped. It has not been run on a cluster yet.
set -euo pipefail
RECIPE=${1:?usage: sbatch slurm.sh RECIPE [key.sub=value ...]}
shift
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=${MASTER_PORT:-29500}
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c '
  exec accelerate launch \
    --multi_gpu --mixed_precision bf16 \
    --num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" \
    --num_processes "$((SLURM_NNODES * SLURM_GPUS_ON_NODE))" \
    --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" \
    -m rlhf_loop run "$@"' bash "$RECIPE" "$@"
