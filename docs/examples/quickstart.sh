#!/usr/bin/env bash
# Train, look, evaluate, generate: the whole job in four commands.
set -euo pipefail
llmtrain train --profile cpu-tiny --steps "${STEPS:-180}" --out runs/quickstart
llmtrain runs show runs/quickstart
llmtrain eval runs/quickstart
llmtrain generate runs/quickstart --prompt def --max-tokens 50
