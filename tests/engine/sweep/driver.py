"""A sweep of 12 fake trainings in the directory `sys.argv[1]`, for a test that kills it."""

from __future__ import annotations

import sys
from pathlib import Path

from llmtrain.engine.sweep import trial as module
from llmtrain.engine.sweep.plan import SweepPlan, Trial
from llmtrain.engine.sweep.sweep import SweepRequest, run_sweep
from llmtrain.train.run_directory.directory import RunDirectory

RATES = (0.31, 0.25, 0.4, 0.6, 0.3, 2.0, 0.2, -1.0, 0.5, 3.0, 0.35, 0.28)
KEY = "optim.momentum"


def command(self: module.TrialRunner, trial: Trial, run: RunDirectory) -> list[str]:
    """The fake training in place of the real one."""
    program = Path(__file__).with_name("fake_training.py")
    rate = RATES[int(trial.settings[KEY] * 100)]
    return [sys.executable, str(program), str(run.path), str(rate)]


def plan() -> SweepPlan:
    """12 trials, which are told apart by a setting that is always valid."""
    return SweepPlan(profile="cpu-tiny", grid={KEY: tuple(n / 100 for n in range(len(RATES)))})


if __name__ == "__main__":
    module.TrialRunner._command = command  # type: ignore[method-assign]
    run_sweep(SweepRequest(plan(), Path(sys.argv[1])), lambda result: None, lambda: None)
