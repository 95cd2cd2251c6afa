"""One trial: `llmtrain train` in a process of its own, watched by the curve that it logs."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.children import MAIN, python_command, start_process
from llmtrain.engine.sweep.plan import SweepPlan, Trial, assignments
from llmtrain.engine.sweep.results import Outcome, TrialResult
from llmtrain.engine.sweep.stopping import CurvePoint, first_hopeless
from llmtrain.errors import InterruptedRunError, LlmtrainError, UsageError
from llmtrain.files import Closing
from llmtrain.profile.horizon import horizon_of
from llmtrain.profile.load import profile_from_values
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.run_directory.history import RunHistory, read_history
from llmtrain.train.run_directory.running import is_in_training
from llmtrain.untrusted import parse_json

_POLL_S = 0.25
_DIVERGED = 4
_USAGE = 2
Curves = Callable[[], Sequence[Sequence[CurvePoint]]]


@dataclass(frozen=True, slots=True)
class TrialProgram:
    """The program of a trial: a `module:function` that takes the arguments of `llmtrain train`.

    Another one than the command itself writes the same files, and ends with the same exit codes.
    """

    entry: str = MAIN
    arguments: tuple[str, ...] = ()  # before those of every trial


TRAIN = TrialProgram()


@dataclass(frozen=True, slots=True)
class TrialRunner:
    """Trains trials of one plan in `directory`.

    `done`: the curves of trials that are done, with which a trial is compared while it trains.
    """

    plan: SweepPlan
    directory: Path
    more: Mapping[str, Any]  # settings of every trial that the command line adds
    done: Curves
    check_stop: Callable[[], None]
    program: TrialProgram = TRAIN

    def run(self, trial: Trial) -> TrialResult:
        """Train a trial to its end, or continue it. Raises InterruptedRunError after a signal.

        Raises UsageError if the command itself is refused.
        """
        run = RunDirectory(self.directory / trial.name)
        while is_in_training(run):  # by a sweep that was killed
            self.check_stop()
            time.sleep(_POLL_S)
        before = self.done()
        with _Training(self._command(trial, run), self.directory / f"{trial.name}.log") as training:
            while not training.has_ended:
                if _is_hopeless(run, before, self.plan):
                    training.stop()
                try:
                    self.check_stop()
                except InterruptedRunError:
                    training.stop()  # it saves itself
                    training.wait()
                    raise
                time.sleep(_POLL_S)
            return self._result(trial, run, training, before)

    def _command(self, trial: Trial, run: RunDirectory) -> list[str]:
        plan, settings = self.plan, {**self.plan.settings, **self.more, **trial.settings}
        profile = ["--profile", plan.profile] if plan.profile is not None else []
        data = [word for spec in plan.data for word in ("--data", spec)]
        sets = [word for text in assignments(settings) for word in ("--set", text)]
        out = ["--out", str(run.path), "--resume", "auto", "--json", "--quiet"]
        program = self.program
        before = (*program.arguments, "train")
        return python_command(program.entry, *before, *profile, *data, *sets, *out)

    def _result(
        self,
        trial: Trial,
        run: RunDirectory,
        training: _Training,
        before: Sequence[Sequence[CurvePoint]],
    ) -> TrialResult:
        code, error = training.outcome()
        if code == _USAGE:
            raise UsageError(f"{trial.name}: {error}", hint=f"{training.log} has all of it")
        history = read_history(run)
        curve = curve_of(run, history)
        hopeless = first_hopeless(curve, before) if self.plan.stop_early else None
        evaluations = history.evaluations
        if hopeless is not None:
            # By the rule, wherever the signal found it: a sweep that was killed ends alike.
            outcome: Outcome = "stopped early"
            evaluations, error = evaluations[: hopeless.index + 1], hopeless.reason
        elif code == 0:
            outcome, error = "done", ""
        elif code == InterruptedRunError.exit_code:
            raise InterruptedRunError(
                f"{trial.name} was stopped by a signal", hint="run the same command again"
            )
        else:
            outcome = "diverged" if code == _DIVERGED else "failed"
        last = evaluations[-1] if evaluations else None
        with suppress(OSError):
            if outcome in ("done", "stopped early"):
                training.log.unlink(missing_ok=True)
        return TrialResult(
            trial=trial.number,
            run=str(run.path),
            settings=dict(trial.settings),
            outcome=outcome,
            val_bpb=last.val_bpb if last is not None and math.isfinite(last.val_bpb) else None,
            step=last.step if last is not None else 0,
            tokens=round(last.tokens) if last is not None else 0,
            seconds=last.elapsed_s if last is not None else 0.0,
            reason=error,
        )


def curve_of(run: RunDirectory, history: RunHistory | None = None) -> list[CurvePoint]:
    """Return the validation curve of a trial; empty as long as it has no run.yaml."""
    try:
        record = run.read_record()
        horizon = horizon_of(profile_from_values(record["profile"], "run.yaml").train)
    except LlmtrainError:
        return []
    history = history or read_history(run)
    total_s = horizon.time_s if horizon is not None else None
    forecast = ((record.get("forecast") or {}).get("steps") or {}).get("value")
    total_steps = horizon.steps if horizon is not None and horizon.steps else forecast

    def share(step: int, elapsed_s: float) -> float:
        if total_s is not None:
            return min(1.0, elapsed_s / total_s)
        return min(1.0, step / total_steps) if total_steps else 0.0

    return [
        CurvePoint(share(each.step, each.elapsed_s), each.tokens, each.val_bpb)
        for each in history.evaluations
    ]


def _is_hopeless(
    run: RunDirectory, before: Sequence[Sequence[CurvePoint]], plan: SweepPlan
) -> bool:
    return plan.stop_early and first_hopeless(curve_of(run), before) is not None


def _stop_signal() -> int:
    """Return the signal that stops another process group; Windows has one that does not kill."""
    if sys.platform == "win32":
        return signal.CTRL_BREAK_EVENT
    return signal.SIGTERM


class _Training(Closing):
    """The process of a trial: its document is read, what it says goes to a log."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        self._errors = log.open("wb")
        self._process = start_process(command, stdout=subprocess.PIPE, stderr=self._errors.fileno())
        self._is_stopped = False

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        """Ask it once to save itself and end."""
        if not self._is_stopped and not self.has_ended:
            self._is_stopped = True
            with suppress(OSError):
                self._process.send_signal(_stop_signal())

    def wait(self) -> None:
        self._process.wait()

    def outcome(self) -> tuple[int, str]:
        """Return its exit code, and its error in a line."""
        assert self._process.stdout is not None
        text, code = self._process.stdout.read(), self._process.wait()
        with suppress(ValueError):
            document = parse_json(text)
            if isinstance(document, dict) and isinstance(document.get("error"), dict):
                return code, str(document["error"].get("message", ""))
        return code, "" if code == 0 else f"exit code {code}; see {self.log}"

    def close(self) -> None:
        """End the process if it still runs: an error ends the sweep."""
        if not self.has_ended:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
