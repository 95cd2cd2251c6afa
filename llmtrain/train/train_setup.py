"""The inputs of a session of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmtrain.data.batches.mixture import MixedSource
from llmtrain.data.batches.preferences import References
from llmtrain.data.shards.prepared import PreparedData
from llmtrain.plan.workload import Workload
from llmtrain.profile.horizon import Horizon
from llmtrain.profile.schema import Profile
from llmtrain.tokenizer import Tokenizer
from llmtrain.train.events import Observer
from llmtrain.train.loop import Run
from llmtrain.train.rate_check import CorrectForecast
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.signals import StopRequest


@dataclass(frozen=True, slots=True)
class TrainSetup:
    """The inputs of a session, of which only `run` changes."""

    run: Run
    profile: Profile
    horizon: Horizon
    directory: RunDirectory
    data: PreparedData
    tokenizer: Tokenizer
    mixture: Sequence[MixedSource]
    workload: Workload
    peak_flops: float | None  # of one process, where known
    stop: StopRequest
    observe: Observer
    used_before_s: float  # by earlier sessions of the run
    starting_s: float  # by this session before training
    forecast_tokens_per_s: float | None  # where known
    validation_references: References | None  # of pairs of answers
    correct_forecast: CorrectForecast  # called at most once, on rank 0
