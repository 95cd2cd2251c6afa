"""`llmtrain runs prove-resume`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from llmtrain.cli import options
from llmtrain.cli.output import Output

if TYPE_CHECKING:
    from llmtrain.documents.runs import RunsProveResume


def prove_resume(
    output: Output,
    profile: options.Profile = None,
    kills: Annotated[
        int, typer.Option("--kills", min=1, help="How many times the process is killed.")
    ] = 5,
    steps: Annotated[
        int, typer.Option("--steps", min=2, help="Optimizer steps of each training.")
    ] = 8,
    nproc: options.Nproc = None,
    seed: Annotated[int, typer.Option("--seed", help="Equal seeds plan equal kills.")] = 0,
    set_: options.Set = None,
    data: options.Data = None,
    weight: options.Weight = None,
) -> int:
    """Train twice for a few steps, once killed at random and resumed, and compare bit for bit.

    It works in a temporary directory and changes none of your files. It takes twice the steps,
    and a start and some steps more for each kill. The trainings end after --steps, not after a
    time: a schedule that follows the clock cannot be repeated.
    """
    from llmtrain.train.signals import stop_on_signals

    with stop_on_signals() as stop:
        from llmtrain.machine.startup import prepare_for_torch

        prepare_for_torch()
        from llmtrain.cli.progress import watching
        from llmtrain.documents.runs import Ending, RunsProveResume
        from llmtrain.engine.prove_resume.proof import ProofOptions
        from llmtrain.engine.prove_resume.proof import prove_resume as prove

        sources = options.weighted_sources(data, weight)
        request = options.request_of(profile, set_, data_sources=sources, device_processes=nproc)
        with watching(output) as observe:
            proof = prove(request, ProofOptions(kills, steps, seed), observe, stop.check)
    whole, killed = proof.uninterrupted, proof.interrupted
    document = RunsProveResume.of(
        proof,  # first_difference, steps, processes, kills, resumes_from_checkpoint
        equal=proof.is_equal,
        resumes=len(proof.kills),
        uninterrupted=Ending.of(whole, lines=len(whole.course), seconds=proof.uninterrupted_s),
        interrupted=Ending.of(killed, lines=len(killed.course), seconds=proof.interrupted_s),
    )
    output.answer(document, _lines(document))
    return 0 if proof.is_equal else 1


def _lines(proof: RunsProveResume) -> Iterator[str]:
    phases = Counter(kill.phase for kill in proof.kills)
    counts = ", ".join(f"{phase} {count}" for phase, count in phases.most_common())
    yield f"kills      {len(proof.kills)} ({counts})"
    yield f"resumes    {proof.resumes}, {proof.resumes_from_checkpoint} from a checkpoint"
    yield f"steps      {proof.steps}, {proof.processes} processes"
    if proof.equal:
        yield f"weights    equal, sha256 {proof.interrupted.model_sha256}"
        yield f"optimizer  equal, sha256 {proof.interrupted.optimizer_sha256}"
        yield f"losses     equal, {proof.interrupted.lines} lines"
    else:
        yield f"NOT EQUAL  first difference: {proof.first_difference}"
