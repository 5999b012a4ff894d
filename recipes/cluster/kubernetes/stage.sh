#!/bin/bash
# What each pod of a stage runs: one launcher, told by Kubeflow Trainer with PET_NNODES, PET_NPROC_PER_NODE,
# PET_NODE_RANK, PET_MASTER_ADDR and PET_MASTER_PORT how many others there are and where. `launch: kubernetes` puts this
# script into each TrainJob. What the ranks say is in RLHF_LOOP_LOGS/POD.log on the shared volume, where the steering
# reads it, and in `kubectl logs`.
set -euo pipefail
cd "$RLHF_LOOP_FOLDER"
LOG="$RLHF_LOOP_LOGS/$(hostname).log"
mkdir -p "$RLHF_LOOP_LOGS"
touch "$LOG"
BEGIN=$(($(stat -c %s "$LOG") + 1))
if [ "$RLHF_LOOP_GPUS" -gt 0 ]; then
  PROCESSES=$((PET_NNODES * PET_NPROC_PER_NODE))
  if [ -n "${RLHF_LOOP_ACCELERATE_CONFIG:-}" ]; then
    SHARE=(--config_file "$RLHF_LOOP_ACCELERATE_CONFIG")
  elif [ "$PROCESSES" -eq 1 ]; then
    SHARE=(--mixed_precision bf16) # Accelerate refuses --multi_gpu with one
  else
    SHARE=(--multi_gpu --mixed_precision bf16)
  fi
  LAUNCH=(accelerate launch "${SHARE[@]}" --num_machines "$PET_NNODES" --machine_rank "$PET_NODE_RANK"
    --num_processes "$PROCESSES" --main_process_ip "$PET_MASTER_ADDR" --main_process_port "$PET_MASTER_PORT")
else
  LAUNCH=(torchrun) # which reads PET_* itself
fi
"${LAUNCH[@]}" -m rlhf_loop.stages "$@" >>"$LOG" 2>&1 &
RANKS=$!
trap 'kill -TERM "$RANKS" || true' TERM # of the pod: they end by themselves
tail --pid="$RANKS" -c "+$BEGIN" -f "$LOG" &
CODE=0
while :; do
  CODE=0
  wait "$RANKS" || CODE=$?
  kill -0 "$RANKS" 2>/dev/null || break # else that was the trap
done
wait
exit "$CODE"
