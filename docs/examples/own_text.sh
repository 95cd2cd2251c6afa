#!/usr/bin/env bash
# Train on text of one's own, with a tokenizer trained beforehand and shared between runs.
set -euo pipefail
text=${1:?usage: own_text.sh FILE_OR_DIRECTORY}
llmtrain tokenizer train --data "$text" --vocab-size 2048 --out my-tokenizer
llmtrain tokenizer inspect --tokenizer my-tokenizer --data "$text"
llmtrain train --profile cpu-tiny --data "$text" --tokenizer my-tokenizer \
  --steps "${STEPS:-500}" --out runs/own-text
