"""`llmtrain runs prove-resume`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

from llmtrain.cli.options import (
    DataOption,
    JsonOption,
    NprocOption,
    ProfileOption,
    SetOption,
    WeightOption,
    flag_settings,
    weighted_sources,
    whole_number,
)
from llmtrain.cli.output import Output

if TYPE_CHECKING:
    from llmtrain.engine.prove_resume.proof import Proof


def prove_resume(
    output: Output,
    profile: ProfileOption = None,
    kills: Annotated[int, whole_number("--kills", "How many times the process is killed.", 1)] = 5,
    steps: Annotated[int, whole_number("--steps", "Optimizer steps of each training.", 2)] = 8,
    nproc: NprocOption = None,
    seed: Annotated[int, whole_number("--seed", "Equal seeds plan equal kills.")] = 0,
    set_: SetOption = None,
    data: DataOption = None,
    weight: WeightOption = None,
    json: JsonOption = False,
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
        from llmtrain.documents.runs import RunsProveResume
        from llmtrain.engine.prove_resume.proof import ProofOptions
        from llmtrain.engine.prove_resume.proof import prove_resume as prove
        from llmtrain.engine.request import TrainRequest

        flags = flag_settings(data_sources=weighted_sources(data, weight), device_processes=nproc)
        request = TrainRequest(profile=profile, assignments=set_ or [], flags=flags)
        with watching(output) as observe:
            proof = prove(request, ProofOptions(kills, steps, seed), observe, stop.check)
    if json:
        output.document(RunsProveResume.of_proof(proof))
    else:
        _show(output, proof)
    return 0 if proof.is_equal else 1


def _show(output: Output, proof: Proof) -> None:
    phases = Counter(kill.phase for kill in proof.kills)
    counts = ", ".join(f"{phase} {count}" for phase, count in phases.most_common())
    output.result(f"kills      {len(proof.kills)} ({counts})")
    output.result(
        f"resumes    {len(proof.kills)}, {proof.resumes_from_checkpoint} from a checkpoint"
    )
    output.result(f"steps      {proof.steps}, {proof.processes} processes")
    if proof.is_equal:
        output.result(f"weights    equal, sha256 {proof.interrupted.model_sha256}")
        output.result(f"optimizer  equal, sha256 {proof.interrupted.optimizer_sha256}")
        output.result(f"losses     equal, {len(proof.interrupted.course)} lines")
    else:
        output.result(f"NOT EQUAL  first difference: {proof.first_difference}")
