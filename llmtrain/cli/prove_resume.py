"""`llmtrain runs prove-resume` and `llmtrain runs verify`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmtrain.cli.options import (
    DataOption,
    JsonOption,
    NprocOption,
    ProfileOption,
    RunArgument,
    SetOption,
    WeightOption,
    flag_settings,
    weighted_sources,
)
from llmtrain.cli.output import Output

if TYPE_CHECKING:
    from llmtrain.engine.verify_resume.verify import Ending, Proof


def prove_resume(
    output: Output,
    profile: ProfileOption = None,
    kills: Annotated[
        int, typer.Option("--kills", min=1, help="How often the process is killed.")
    ] = 5,
    steps: Annotated[int, typer.Option("--steps", min=2, help="How long both trainings are.")] = 8,
    nproc: NprocOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Equal seeds strike alike.")] = 0,
    set_: SetOption = None,
    data: DataOption = None,
    weight: WeightOption = None,
    json: JsonOption = False,
) -> int:
    """Train a little twice, once killed at random, and compare bit for bit.

    In a temporary directory: nothing of yours is touched. It takes twice the steps, and a start
    and some steps more for each kill. Under a time the schedule follows the clock and cannot be
    replayed: here steps count.
    """
    from llmtrain.train.distributed.signals import stop_on_signals

    with stop_on_signals() as stop:
        from llmtrain.machine.startup import prepare_for_torch

        prepare_for_torch()
        from llmtrain.cli.progress import watching
        from llmtrain.engine.request import TrainRequest
        from llmtrain.engine.verify_resume.verify import Trial
        from llmtrain.engine.verify_resume.verify import prove_resume as prove

        flags = flag_settings(data_sources=weighted_sources(data, weight), device_processes=nproc)
        request = TrainRequest(profile=profile, assignments=set_ or [], flags=flags)
        with watching(output) as observe:
            proof = prove(request, Trial(kills, steps, seed), observe, stop.check)
    if json:
        output.document(proof_document(proof))
    else:
        _show(output, proof)
    return 0 if proof.is_equal else 1


def _show(output: Output, proof: Proof) -> None:
    where = Counter(kill.phase for kill in proof.kills)
    struck = ", ".join(f"{phase} {count}" for phase, count in where.most_common())
    output.result(f"kills      {len(proof.kills)} ({struck})")
    output.result(f"resumes    {len(proof.kills)}")
    output.result(f"steps      {proof.steps}, {proof.processes} processes")
    if proof.is_equal:
        output.result(f"weights    equal, sha256 {proof.interrupted.model_sha256}")
        output.result(f"optimizer  equal, sha256 {proof.interrupted.optimizer_sha256}")
        output.result(f"losses     equal, {len(proof.interrupted.course)} lines")
    else:
        output.result(f"NOT EQUAL  first difference: {proof.first_difference}")


def proof_document(proof: Proof) -> dict[str, Any]:
    """The `runs prove-resume` document."""
    return {
        "equal": proof.is_equal,
        "first_difference": proof.first_difference,
        "steps": proof.steps,
        "processes": proof.processes,
        "kills": [asdict(kill) for kill in proof.kills],
        "resumes": len(proof.kills),
        "uninterrupted": _ending_document(proof.uninterrupted, proof.uninterrupted_s),
        "interrupted": _ending_document(proof.interrupted, proof.interrupted_s),
    }


def _ending_document(ending: Ending, seconds: float) -> dict[str, Any]:
    return {
        "model_sha256": ending.model_sha256,
        "optimizer_sha256": ending.optimizer_sha256,
        "lines": len(ending.course),
        "seconds": seconds,
    }


def verify(output: Output, run: RunArgument, json: JsonOption = False) -> int:
    """Compare every file of a run's checkpoints with its hash; nothing is changed."""
    from llmtrain.train.checkpoint.format import DamagedCheckpointError, verify_checkpoint
    from llmtrain.train.run_directory.directory import find_checkpoints

    damaged: dict[str, str] = {}
    good: list[str] = []
    for path in find_checkpoints(run):
        try:
            verify_checkpoint(path)
        except DamagedCheckpointError as error:
            damaged[str(path)] = error.message
        else:
            good.append(str(path))
    newest = good[-1] if good else None
    if json:
        rows = [{"checkpoint": path, "problem": why} for path, why in damaged.items()]
        output.document({"good": good, "damaged": rows, "newest_good": newest})
    else:
        for name in good:
            output.result(f"good     {name}")
        for name, why in damaged.items():
            output.result(f"damaged  {name}: {why}")
        output.note(f"newest good: {newest}" if newest else "none is whole")
    return 1 if damaged else 0
