"""What a tracker costs a training, a step: time in which the loop waits, and CPU of its process.

    python -m tests.benchmarks.tracker_cost --lines 500 --step-ms 300 --log-every 10

Lines of metrics are sent at the pace of steps, as training does it, and the time of each call is
measured by this thread's CPU clock and by the wall clock. The tracker's own process is measured by
the CPU time that it took after its start, as it shares the cores with training. `--step-ms` is a
step of cpu-tiny on two cores, and `--log-every` its train.log_every_steps.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median

import psutil

from llmtrain.tracking.tracker import Tracker
from tests.programs import program_parser
from tests.tracking.curves import READERS

_LINE = {"loss": 2.5, "lr": 1e-3, "grad_norm": 0.5, "tokens": 4096, "tokens_per_s": 1e4}
_PACE_S = 0.01


def main(arguments: Sequence[str]) -> int:
    """Print a line for each tracker that is installed; 1 if one waits for more than 0.5%."""
    values = _parser().parse_args(arguments)
    worst = 0.0
    for name in (n for n in sorted(READERS) if importlib.util.find_spec(n) is not None):
        waited_s, child_s = _measured(name, values.lines)
        step_s = values.step_ms / 1000 * values.log_every
        worst = max(worst, waited_s / step_s)
        sys.stdout.write(
            f"{name}: a line takes the loop {waited_s * 1e6:.0f} µs, {waited_s / step_s:.4%} of "
            f"its steps; its process {child_s * 1e3:.1f} ms of CPU, {child_s / step_s:.2%} of a "
            "core\n"
        )
    return 1 if worst > 0.005 else 0


def _measured(name: str, lines: int) -> tuple[float, float]:
    """Return the median seconds of a call, and the process's CPU seconds of a line."""
    with tempfile.TemporaryDirectory() as place:
        os.environ["TRACKIO_DIR"] = place
        calls = list[float]()
        with Tracker(name, Path(place) / "run", lambda note: None) as tracker:  # type: ignore[arg-type]
            (Path(place) / "run").mkdir()
            tracker.send({"start": 0, "profile": {"name": "p"}})
            process = psutil.Process(tracker._process.pid)
            before_s = _settled_s(process)
            for step in range(1, lines + 1):
                begun_s = time.perf_counter()
                tracker.send({"metrics": {"step": step, "elapsed_s": step * 0.3, **_LINE}})
                calls.append(time.perf_counter() - begun_s)
                time.sleep(_PACE_S)
            child_s = _settled_s(process) - before_s
        return median(calls), child_s / lines


def _settled_s(process: psutil.Process) -> float:
    """Return the CPU time of a process and its children, once it no longer grows."""
    used_s, still = -1.0, 0
    while still < 5:
        found_s = 0.0
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                times = each.cpu_times()
                found_s += times.user + times.system
        still = still + 1 if found_s - used_s < 0.02 else 0
        used_s = found_s
        time.sleep(0.3)
    return used_s


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(__file__, __doc__)
    add = parser.add_argument
    add("--lines", type=int, default=500, help="of metrics that are sent")
    add("--step-ms", type=float, default=300, help="milliseconds of a step")
    add("--log-every", type=int, default=10, help="steps of a line")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
