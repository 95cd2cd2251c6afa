"""A training without a model: it logs a loss that its rate decides, and resumes after a kill.

Run by a sweep in place of `llmtrain train`: `python fake_training.py DIRECTORY RATE`.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from pathlib import Path

STEPS = 8


def main() -> None:
    """Train, or continue after the last whole line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    directory, rate = Path(sys.argv[1]), float(sys.argv[2])
    if rate < 0:
        sys.stdout.write(json.dumps({"error": {"message": "the loss is not finite"}}))
        sys.exit(4)
    directory.mkdir(parents=True, exist_ok=True)
    record = {"profile": {"name": "fake", "train": {"steps": STEPS}}, "sessions": []}
    (directory / "run.yaml").write_text(json.dumps(record))
    metrics = directory / "metrics.jsonl"
    lines = metrics.read_bytes().split(b"\n")[:-1] if metrics.exists() else []
    steps = [json.loads(line)["step"] for line in lines if b"val_bpb" in line]
    whole = [line for line in lines if json.loads(line)["step"] <= max(steps, default=0)]
    metrics.write_bytes(b"".join(line + b"\n" for line in whole))
    with metrics.open("a") as file:
        for step in range(max(steps, default=0) + 1, STEPS + 1):
            time.sleep(0.02)
            bits = 1 + abs(rate - 0.3) + 2 / step
            logged = {"step": step, "tokens": 100 * step, "elapsed_s": step, "loss": 2.0}
            known = bits if math.isfinite(bits) else None
            for line in (logged, {"step": step, "val_loss": 2 * bits, "val_bpb": known}):
                file.write(json.dumps(line) + "\n")
                file.flush()


if __name__ == "__main__":
    main()
