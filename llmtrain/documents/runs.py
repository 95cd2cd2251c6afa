"""Past runs, their checkpoints, and the proof that a resume changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import Self

from llmtrain.documents.base import Document, Number, Part, Text, key

if TYPE_CHECKING:
    from llmtrain.engine.prove_resume.proof import Proof, RunResult
    from llmtrain.train.run_directory.verify import Verified


class Run(Part):
    """The progress of a run."""

    run: Text = key("the run directory")
    profile: Text | None = key("the profile's name")
    step: int = key("the last logged step")
    tokens: int = key("trained on by then")
    train_loss: Number = key("of that step, nats per token; null: no step was logged")
    val_loss: Number = key("of the last evaluation, nats per token; null: there was none")
    val_bpb: Number = key("of the last evaluation, bits per byte; null: there was none")
    best_val_loss: Number = key("the lowest so far, nats per token; null: there was none")
    elapsed_s: float = key("seconds of all sessions until that step")
    checkpoints: list[Text] = key("names of the saved ones, oldest first")
    status: Text = key("done, time, interrupted, or unfinished")
    state: Literal["running", "finished", "interrupted", "crashed"] = key(
        "running on this machine, finished, stopped by a signal, or ended without a result"
    )
    started: Text | None = key("when its first session began, ISO 8601; null: unknown")


class RunsList(Document):
    """`llmtrain runs list`."""

    runs: list[Run] = key("by name")


class RunsShow(Run, Document):
    """`llmtrain runs show`."""

    record: dict[Text, Any] = key("what run.yaml holds: see `run.yaml`")


class Problem(Part):
    """A checkpoint with a file that is missing or changed, or cannot be read."""

    checkpoint: Text = key("its directory")
    problem: Text = key("what is wrong with it")


class RunsVerify(Document):
    """`llmtrain runs verify`: exit code 1 where anything is damaged or unreadable."""

    good: list[Text] = key("checkpoints whose files all have their recorded hash, oldest first")
    damaged: list[Problem] = key("incomplete or changed ones")
    unreadable: list[Problem] = key("ones that permissions or the disk keep from being read")
    newest_good: Text | None = key("the last of the good ones; null: there is none")

    @classmethod
    def of_verified(cls, found: Verified) -> Self:
        """Return the document of what was verified."""
        damaged, unreadable = (
            [{"checkpoint": str(path), "problem": why} for path, why in problems.items()]
            for problems in (found.damaged, found.unreadable)
        )
        newest = found.newest_good
        return cls.of(
            good=[str(path) for path in found.good],
            damaged=damaged,
            unreadable=unreadable,
            newest_good=None if newest is None else str(newest),
        )


class Kill(Part):
    """One kill, of one process or of all."""

    phase: Text = key(
        "what the run was doing: start-up, data preparation, resume, step, evaluation, sampling, "
        "save, retention"
    )
    aimed_at: Text = key("the phase that the kill was planned for")
    step: int = key("the last logged or saved step")
    victim: Text = key("which rank, or every process")
    gone_after_s: float = key("seconds until no process of the run was left")
    after_checkpoint: bool = key("whether the next start resumed from a checkpoint")


class Ending(Part):
    """The end of a training run."""

    model_sha256: Text = key("of the weights' file")
    optimizer_sha256: Text = key("of the optimizer's file")
    lines: int = key("of metrics")
    seconds: float = key("it took")

    @classmethod
    def of_training(cls, result: RunResult, seconds: float) -> Self:
        """Return the end of a training run that took `seconds`."""
        return cls.of(result, lines=len(result.course), seconds=seconds)


class RunsProveResume(Document):
    """`llmtrain runs prove-resume`: exit code 1 where the two differ."""

    equal: bool = key("whether weights, optimizer state and all logged values are bitwise equal")
    first_difference: Text | None = key("where they first differ; null: nowhere")
    steps: int = key("optimizer steps of each training")
    processes: int = key("ranks")
    kills: list[Kill] = key("in order of time")
    resumes: int = key("how often it was resumed")
    resumes_from_checkpoint: int = key("of those, from a checkpoint and not from the beginning")
    uninterrupted: Ending = key("of the uninterrupted training")
    interrupted: Ending = key("of the one that was killed and resumed")

    @classmethod
    def of_proof(cls, proof: Proof) -> Self:
        """Return the document of two trainings that were compared."""
        return cls.of(
            proof,  # first_difference, steps, processes, kills
            equal=proof.is_equal,
            resumes=len(proof.kills),
            uninterrupted=Ending.of_training(proof.uninterrupted, proof.uninterrupted_s),
            interrupted=Ending.of_training(proof.interrupted, proof.interrupted_s),
        )
