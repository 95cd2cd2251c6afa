"""The document of `llmtrain report-bug`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from llmtrain.documents.base import Document, Part, Text, key
from llmtrain.documents.machines import Accelerator, Cpu, FailedDevice, Platform

if TYPE_CHECKING:
    from llmtrain.engine.bug_report import BugReport
    from llmtrain.machine.facts import Facts


class ReportedRun(Part):
    """A run without the user's own words."""

    llmtrain: Text = key("the version that began it")
    recorded: dict[str, Any] = key("versions, plan, prediction and machine, as `run.yaml` has them")
    profile: dict[str, Any] = key("its settings, without texts, names and paths")
    data: dict[str, Any] = key("how many tokens, and the kinds of sources")
    sessions: list[dict[str, Any]] = key("when each began, from which step, and how it computed")
    result: dict[str, Any] = key("the numbers of the result, and why it ended")
    metrics: list[dict[str, Any]] = key("the newest lines of `metrics.jsonl`, oldest first")


class ReportBug(Document):
    """`llmtrain report-bug`: the machine and a run, for people who look for a bug."""

    left_out: Text = key("what is not in here, in words for people")
    platform: Platform = key("operating system and libraries")
    cpu: Cpu = key("processor and memory")
    accelerators: list[Accelerator] = key("GPUs that compute")
    failures: list[FailedDevice] = key("devices that could not be initialised")
    unusable_gpu: Text | None = key("why this torch cannot use a GPU that is there; null: no such")
    run: ReportedRun | None = key("the run; null: none was named")

    @classmethod
    def of_report(cls, report: BugReport, left_out: str) -> Self:
        """Return the document of a report."""
        return cls.of(
            report,
            left_out=left_out,
            platform=_platform(report.facts),
            cpu=report.facts.cpu,
            accelerators=report.facts.accelerators,
            failures=[{"kind": kind, "reason": why} for kind, why in report.facts.failures],
            unusable_gpu=report.facts.unusable_gpu,
        )


def _platform(facts: Facts) -> Platform:
    compiler = facts.cxx_compiler
    return Platform.of(
        facts,
        python=facts.python_version,
        torch=facts.torch_version,
        triton=facts.has_triton,
        cxx_compiler=None if compiler is None else Path(compiler).name,  # no directories of users
    )
