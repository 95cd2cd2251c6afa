#!/usr/bin/env bash
# In CI: plan, train a little, and read the numbers from JSON.
set -euo pipefail
llmtrain memory --profile cpu-tiny --json > memory.json
llmtrain train --profile cpu-tiny --steps "${STEPS:-20}" --out runs/ci --json -q > train.json
python3 - <<'PY'
import json

memory, train = json.load(open("memory.json")), json.load(open("train.json"))
assert memory["fits"]
assert train["stopped"] == "done"
print(f"{train['val_bpb']:.3f} bits/byte, peak {train['peak_memory_bytes'] / 2**20:.0f} MiB")
PY
