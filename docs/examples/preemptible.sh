#!/usr/bin/env bash
# Run until done on a machine that may take the job away: exit code 75 means "saved, start me again".
set -uo pipefail
while true; do
  llmtrain train --profile cpu-tiny --steps "${STEPS:-180}" --out runs/preemptible --resume auto
  code=$?
  [ "$code" -eq 75 ] || exit "$code"
done
