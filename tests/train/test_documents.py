"""A run that masks documents: in training, in evaluation during it, and after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from llmtrain.data.batches.windows import BatchReader, sequential_windows
from llmtrain.data.shards.prepared import PreparedData, entry_directory, open_prepared
from llmtrain.engine.evaluation import evaluate_run
from llmtrain.eval.evaluate import LossSum, sum_loss
from llmtrain.files import cache_directory
from llmtrain.model.decoder import Decoder
from llmtrain.profile.schema import DeviceSection
from llmtrain.train.checkpoint.format import load_checkpoint
from llmtrain.train.events import Started
from llmtrain.train.model_weights import trained_model
from tests.train.harness import Files, InProcessTrainer, RunAlone

CONTEXT, EVALUATED = 32, 512
SETTINGS: dict[str, Any] = {"data__mask_documents": True, "device__precision": "fp32"}
PACKED = {"data__packing": "best_fit"}


@pytest.fixture(scope="module")
def masked(run_alone: RunAlone) -> Files:
    return run_alone(**SETTINGS)


@pytest.fixture
def data(masked: Files) -> Iterator[PreparedData]:
    key = yaml.safe_load((masked.path / "run.yaml").read_text())["data"]["key"]
    with closing(open_prepared(entry_directory(cache_directory(), key))) as prepared:
        yield prepared


def loss_of(
    model: Decoder, windows: Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]
) -> LossSum:
    return sum_loss(model, windows, micro_batch=8, autocast=nullcontext, check_stop=lambda: None)


def test_masking_is_another_course(masked: Files, run_alone: RunAlone) -> None:
    whole = run_alone(device__precision="fp32")
    ours, theirs = (
        [line["loss"] for line in run.course() if "loss" in line] for run in (masked, whole)
    )
    assert len(ours) == len(theirs)
    assert ours[-1] != theirs[-1]
    assert ours[-1] < ours[0] - 0.5


def test_both_evaluations_mask_as_training_did(masked: Files, data: PreparedData) -> None:
    checkpoint = load_checkpoint(masked.newest)
    model = trained_model(checkpoint.shape, checkpoint.weights, "it")
    reader = BatchReader(data.validation, CONTEXT, seed=0)
    during = [line["val_loss"] for line in masked.course() if "val_loss" in line][-1]
    device = DeviceSection(kind="cpu", precision="fp32")
    after = evaluate_run(str(masked.path), (), device, print, lambda: None)
    for separator_id, is_what_training_saw in ((data.index.separator_id, True), (None, False)):
        model.separator_id = separator_id
        some = (reader.read(i, 1) for i in range(min(EVALUATED // CONTEXT, reader.num_windows)))
        windows = ((inputs[0], targets[0]) for inputs, targets in some)
        found = loss_of(model, windows).nats_per_token
        assert (found == pytest.approx(during, rel=1e-5)) == is_what_training_saw
        whole = loss_of(model, sequential_windows(data.validation, CONTEXT)).nats_per_token
        assert (whole == pytest.approx(after.loss_nats_per_token, rel=1e-5)) == is_what_training_saw


@pytest.fixture(scope="module")
def packed(run_alone: RunAlone) -> Files:
    return run_alone(**SETTINGS, **PACKED)


def test_packed_documents_are_trained_on(packed: Files, masked: Files) -> None:
    losses = [line["loss"] for line in packed.course() if "loss" in line]
    assert losses[-1] < losses[0] - 0.5
    assert losses != [line["loss"] for line in masked.course() if "loss" in line]
    (kept,) = (cache_directory() / "shards").glob(f"*/packing-*-{CONTEXT}.bin")
    assert kept.stat().st_size > 1000


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    packing: str, masked: Files, packed: Files, train: InProcessTrainer, place: Path
) -> None:
    settings = SETTINGS if packing == "concatenate" else SETTINGS | PACKED
    stops = lambda event: getattr(event, "step", 0) == 7  # noqa: E731
    train(place / "run", stop_at=stops, **settings)
    train(place / "run", resume="auto", **settings)
    expected = masked if packing == "concatenate" else packed
    assert Files(place / "run").digests() == expected.digests()
    assert sum(isinstance(event, Started) for event in train.events) == 2
