"""Train every trial of a plan, several at once; what was killed continues where it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from filelock import FileLock, Timeout

from llmtrain.engine.sweep.plan import SweepPlan, Trial, require_valid, trials_of
from llmtrain.engine.sweep.results import SweepResults, TrialResult
from llmtrain.engine.sweep.search import require_search, trials_left
from llmtrain.engine.sweep.stopping import CurvePoint
from llmtrain.engine.sweep.trial import TRAIN, TrialProgram, TrialRunner, curve_of
from llmtrain.errors import InterruptedRunError, UsageError
from llmtrain.files import created
from llmtrain.machine.probe import read_facts
from llmtrain.plan.decisions import choose_threads
from llmtrain.profile.schema import DeviceSection
from llmtrain.train.run_directory.directory import LOCK_FILE, RunDirectory

_POLL_S = 0.2
_THREADS = "device.threads"


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """One call of `sweep`."""

    plan: SweepPlan
    directory: Path
    workers: int = 1
    settings: Mapping[str, Any] | None = None  # of every trial, over those of the plan
    program: TrialProgram = TRAIN


def run_sweep(
    request: SweepRequest, observe: Callable[[TrialResult], None], check_stop: Callable[[], None]
) -> list[TrialResult]:
    """Train what is left of the plan; return all results, the best first.

    `observe` is called with each result when its trial ends. Raises UsageError for a plan or a
    directory that cannot be used, InterruptedRunError after a signal: the same call continues.
    """
    plan, directory = request.plan, request.directory
    require_search(plan)
    more = _settings_of_all(request)
    require_valid(plan, trials_of(plan), more)
    with _claimed(directory):
        results = SweepResults(directory)
        left = trials_left(plan, results)

        def done() -> Sequence[Sequence[CurvePoint]]:
            finished = [r for r in list(results.by_trial.values()) if r.outcome == "done"]
            return [curve_of(RunDirectory(Path(r.run))) for r in finished]

        is_over = Event()

        def check() -> None:
            check_stop()
            if is_over.is_set():
                raise InterruptedRunError("the sweep ends", hint="run the same command again")

        runner = TrialRunner(plan, directory, more, done, check, request.program)
        for result in _trained(runner, left, request.workers, is_over):
            results.add(result)
            observe(result)
        return results.ranked()


def _settings_of_all(request: SweepRequest) -> dict[str, Any]:
    """Return settings of every trial: those asked for, and a share of the cores for each worker."""
    more = dict(request.settings or {})
    varied = (request.plan.settings, request.plan.grid, request.plan.random, more)
    if request.workers > 1 and not any(_THREADS in each for each in varied):
        facts = read_facts(tries_gpus=False)
        more[_THREADS] = choose_threads(facts, DeviceSection(), request.workers).value
    return more


def _trained(
    runner: TrialRunner, trials: Iterator[Trial], workers: int, is_over: Event
) -> Iterator[TrialResult]:
    """Yield results as trials end; `workers` of them train at once, in order of their number.

    Sets `is_over` if one fails or the sweep is stopped: the others then save themselves and end.
    """
    running, is_more = set[Future[TrialResult]](), True
    with ThreadPoolExecutor(workers) as threads:
        try:
            while is_more or running:
                while is_more and len(running) < workers:
                    trial = next(trials, None)
                    is_more = trial is not None
                    if trial is not None:
                        running.add(threads.submit(runner.run, trial))
                ended, running = wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                for future in ended:
                    yield future.result()
                runner.check_stop()
        finally:
            is_over.set()


@contextmanager
def _claimed(directory: Path) -> Iterator[None]:
    """Within the block, lock the sweep's directory for this process. Raises UsageError."""
    if RunDirectory(directory).exists:
        raise UsageError(f"--out {directory} is a run", hint="choose another --out")
    with created(directory):
        lock = FileLock(directory / LOCK_FILE, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise UsageError(
                f"{directory} is being swept by another process",
                hint="wait for it, or choose --out",
            ) from None
        try:
            yield
        finally:
            with suppress(OSError):  # on Windows the release removes it
                (directory / LOCK_FILE).unlink(missing_ok=True)
            lock.release()
