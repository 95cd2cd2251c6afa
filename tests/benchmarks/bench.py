"""Runs the processes of a comparison, one after the other."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from tests.benchmarks.comparison import Comparison
from tests.benchmarks.documents import PeakJob, Peaks, Prepared, PrepareJob, Trained, TrainJob
from tests.benchmarks.own import MeasurementError, own_command, read_own
from tests.benchmarks.process import Finished, run_measured, tail
from tests.benchmarks.results import OURS, Failure, Run
from tests.checkout import ROOT

_LEAST_RANDOM_TOKENS = 1 << 20
D = TypeVar("D", bound=BaseModel)


class Bench:
    """Keeps its processes' files in `scratch`, those of a run only for as long as it takes."""

    def __init__(self, comparison: Comparison, scratch: Path) -> None:
        self._comparison = comparison
        self._scratch = scratch

    def prepare(self) -> Prepared:
        """The token file is there. Raises MeasurementError."""
        comparison = self._comparison
        wanted = 2 * comparison.all_steps * comparison.tokens_per_step(OURS)
        is_random = comparison.tokens == "random"
        job = PrepareJob(
            profile=comparison.shape.profile,
            assignments=comparison.own_assignments,
            sources=(comparison.text,),
            random_tokens=max(_LEAST_RANDOM_TOKENS, wanted) if is_random else None,
            seed=comparison.seed,
            directory=self._fresh("prepare"),
        )
        return self._answer("prepare", job, Prepared)

    def peaks(self, prepared: Prepared) -> Peaks:
        """The machine's matrix peak, now. Raises MeasurementError."""
        products = self._comparison.shape.peak_products
        self._fresh("peak")
        return self._answer(
            "peak", PeakJob(products=products, threads=self.threads(prepared)), Peaks
        )

    def run(self, round_number: int, system: str, prepared: Prepared) -> Run | Failure:
        """The system, trained once."""
        directory = self._fresh(system)
        log, output = directory / "log.txt", directory / "output"
        command = self._command(system, prepared, directory, output)
        finished = run_measured(command, self._environment, log, ROOT)
        try:
            trained = self._trained(system, prepared, finished, log, output)
        except MeasurementError as error:
            return Failure(round_number, system, command, finished.exit_code, str(error))
        finally:
            shutil.rmtree(directory, ignore_errors=True)  # a checkpoint of M has 1.4 GB
        return Run(
            round=round_number,
            system=system,
            command=command,
            finished=finished,
            trained=trained,
            warmup=self._comparison.warmup,
            tokens_per_step=self._comparison.tokens_per_step(system),
        )

    def threads(self, prepared: Prepared) -> int:
        """Of every system that is one process: as many as all of ours have together."""
        return self._comparison.threads_in_all or prepared.machine.usable_cores

    def _command(self, system: str, prepared: Prepared, directory: Path, output: Path) -> list[str]:
        comparison = self._comparison
        if system == OURS:
            return own_command(comparison, prepared, output)
        job = TrainJob(
            system=system,
            model=comparison.shape.model,
            micro_batch=comparison.shape.micro_batch,
            steps=comparison.all_steps,
            threads=self.threads(prepared),
            seed=comparison.seed,
            tokens_file=prepared.tokens_file,
            dtype=prepared.dtype,
            nanogpt=comparison.nanogpt,
            directory=directory,
        )
        return _worker_command("train", job, directory / "job.json", output)

    def _trained(
        self, system: str, prepared: Prepared, finished: Finished, log: Path, output: Path
    ) -> Trained:
        if finished.exit_code:
            raise MeasurementError(f"exit code {finished.exit_code}\n{tail(log)}")
        if system == OURS:
            trained = read_own(self._comparison, prepared, output)
        else:
            trained = Trained.model_validate_json(output.read_text(encoding="utf-8"))
        if len(trained.step_s) != self._comparison.all_steps:
            raise MeasurementError(
                f"{len(trained.step_s)} steps are known of {self._comparison.all_steps}"
            )
        return trained

    def _answer(self, what: str, job: BaseModel, kind: type[D]) -> D:
        directory = self._scratch / what
        log, output = directory / "log.txt", directory / "output"
        command = _worker_command(what, job, directory / "job.json", output)
        finished = run_measured(command, self._environment, log, ROOT)
        if finished.exit_code:
            raise MeasurementError(f"{what} failed\n{tail(log)}")
        return kind.model_validate_json(output.read_text(encoding="utf-8"))

    @property
    def _environment(self) -> dict[str, str]:
        """Our own, for every process. Random tokens have a cache to themselves."""
        environment = dict(os.environ)
        if self._comparison.tokens == "random":
            environment["LLMTRAIN_CACHE_DIR"] = str(self._scratch / "cache")
        return environment

    def _fresh(self, name: str) -> Path:
        directory = self._scratch / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        return directory


def _worker_command(what: str, job: BaseModel, job_file: Path, result: Path) -> list[str]:
    job_file.write_text(job.model_dump_json(), encoding="utf-8")
    module = "tests.benchmarks.worker"
    return [sys.executable, "-m", module, what, str(job_file), str(result)]
