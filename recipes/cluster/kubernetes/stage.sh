#!/bin/bash
# What each pod of a stage runs: one launcher, told by Kubeflow Trainer with PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR and
# PET_MASTER_PORT how many others there are and where. `launch: kubernetes` puts this script into each TrainJob. What the
# ranks say is in RLHF_LOOP_LOGS/POD.log on the shared volume, where the steering reads it, and in `kubectl logs`.
set -euo pipefail
cd "$RLHF_LOOP_FOLDER"
LOG="$RLHF_LOOP_LOGS/$(hostname).log"
mkdir -p "$RLHF_LOOP_LOGS"
touch "$LOG"
BEGIN=$(($(stat -c %s "$LOG") + 1))
python3 -m rlhf_loop.launch.node kubernetes rlhf_loop.stages "$@" >>"$LOG" 2>&1 &
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
