#!/bin/bash
# What each node of a SkyPilot task runs: one launcher, told with SKYPILOT_NODE_RANK, SKYPILOT_NODE_IPS, SKYPILOT_NUM_NODES
# and SKYPILOT_NUM_GPUS_PER_NODE how many others there are and where. `rlhf-loop submit RECIPE --skypilot` puts this script
# into the task. Where the run lies on the node's own disk (RLHF_LOOP_RUN), its whole rounds are fetched from
# RLHF_LOOP_COPIES first, and pushed there as they are made: what is lost with the node is the round in the making.
set -euo pipefail
RANKS=(python3 -m rlhf_loop.launch.node skypilot rlhf_loop run "$@")
if [ -z "${RLHF_LOOP_COPIES:-}" ]; then
  exec "${RANKS[@]}"
fi
[ -d "$RLHF_LOOP_RUN" ] || rlhf-loop fetch --if-any "$RLHF_LOOP_COPIES" "$RLHF_LOOP_RUN"
whole() { find "$RLHF_LOOP_RUN" -mindepth 2 -maxdepth 2 -path '*/round_*/manifest.json' 2>/dev/null | wc -l || true; }
push() { rlhf-loop push "$RLHF_LOOP_RUN" "$RLHF_LOOP_COPIES"; }
EVERY=${RLHF_LOOP_PUSH_EVERY:-30} # seconds
PUSHED=$(whole)
"${RANKS[@]}" &
LOOP=$!
trap 'kill -TERM "$LOOP" || true' TERM
while kill -0 "$LOOP" 2>/dev/null; do
  timeout "$EVERY" tail --pid="$LOOP" --sleep-interval=0.1 -f /dev/null & # behind: a trap waits for what is in front
  wait $! || true
  NOW=$(whole)
  if [ "$NOW" -gt "$PUSHED" ] && push; then
    PUSHED=$NOW
  fi
done
CODE=0
wait "$LOOP" || CODE=$?
for TRY in 1 2 3 4 5; do # what was answered and reported since the last round too
  [ "$(whole)" -gt 0 ] || break
  push && break
  [ "$TRY" -lt 5 ] || CODE=1
  sleep "$EVERY"
done
exit "$CODE"
