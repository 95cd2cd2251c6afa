"""What exporting a run takes, and what each encoding costs: one `llmtrain export` for each.

Seconds are of the whole command, processor time that of it and its children, memory the highest
resident memory of any of its processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

ENCODINGS = ("f32", "f16", "bf16", "q8_0", "q5_0", "q4_0")
_MIB = 1 << 20
_HEAD = "| encoding | MiB | bits per byte | change | nats, at most | s | processor s | peak MiB |\n"


def main() -> None:
    """Export a run in every encoding, and print a row of Markdown for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--encodings", default=",".join(ENCODINGS))
    parser.add_argument("--data", default=None, help="text to compare on")
    options = parser.parse_args()
    sys.stdout.write(_HEAD + "| --- " * 8 + "|\n")
    for encoding in options.encodings.split(","):
        sys.stdout.write(_row(options.run, encoding, options.data) + "\n")
        sys.stdout.flush()


def _row(run: str, encoding: str, data: str | None) -> str:
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "llmtrain", "export", run, "--format", "gguf"]
        command += ["--quant", encoding, "--out", out, "--json", "--verify"]
        command += [] if data is None else ["--data", data]
        begun_s = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            document = json.loads(process.stdout.read())
            _, _, usage = os.wait4(process.pid, 0)
            process.returncode = 0
        elapsed_s = time.perf_counter() - begun_s
    cost, seen = document["cost"], document["verification"]
    size_mib = document["files"][0]["bytes"] / _MIB
    measured = ("", "")
    if cost is not None:
        before, after = cost["bits_per_byte_before"], cost["bits_per_byte_after"]
        measured = (f"{before:.4f} → {after:.4f}", f"{after / before - 1:+.2%}")
    figures = (
        encoding,
        f"{size_mib:.1f}",
        *measured,
        f"{seen['largest_difference_nats']:.1e}",
        f"{elapsed_s:.1f}",
        f"{usage.ru_utime + usage.ru_stime:.1f}",
        f"{usage.ru_maxrss / 1024:.0f}",
    )
    return "| " + " | ".join(figures) + " |"


if __name__ == "__main__":
    main()
