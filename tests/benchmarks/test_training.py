"""The parts that run in a process of their own, at a shape of milliseconds."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llmtrain.data.shards.prepared import open_prepared
from llmtrain.prepare.context import PrepareContext
from llmtrain.prepare.dataset import prepare_dataset
from llmtrain.profile.load import load_profile
from tests.benchmarks.comparison import Comparison
from tests.benchmarks.documents import PeakJob, Prepared, PrepareJob, TrainJob
from tests.benchmarks.naive import NaiveGpt2
from tests.benchmarks.own import own_command
from tests.benchmarks.peak import measure_peaks
from tests.benchmarks.plain import random_batches
from tests.benchmarks.tokens import prepare_tokens
from tests.benchmarks.worker import main, train_system


@pytest.fixture
def threads_restored() -> object:
    """The worker sets threads for its process, which here is everybody's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def prepared_in(
    directory: Path, comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> Prepared:
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(directory / "cache"))
    is_random = comparison.tokens == "random"
    job = PrepareJob(
        profile=comparison.shape.profile,
        assignments=comparison.own_assignments,
        sources=(comparison.text,),
        random_tokens=5000 if is_random else None,
        seed=3,
        directory=directory,
    )
    return prepare_tokens(job)


def train_job(comparison: Comparison, prepared: Prepared, directory: Path) -> TrainJob:
    return TrainJob(
        system="naive",
        model=comparison.shape.model,
        micro_batch=comparison.shape.micro_batch,
        steps=3,
        threads=1,
        seed=0,
        tokens_file=prepared.tokens_file,
        dtype=prepared.dtype,
        nanogpt=None,
        directory=directory,
    )


def ids_of(prepared: Prepared) -> list[int]:
    return [int(each) for each in np.fromfile(prepared.tokens_file, dtype=prepared.dtype)]


def test_random_tokens_cover_the_vocabulary_and_come_from_the_seed(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = prepared_in(tmp_path / "a", comparison, monkeypatch)
    second = prepared_in(tmp_path / "b", comparison, monkeypatch)
    ids = ids_of(first)
    assert ids == ids_of(second)
    assert len(ids) == first.tokens == 5000
    assert len(set(ids)) == comparison.shape.model.vocab_size


def test_llmtrain_trains_on_the_random_tokens(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepared_in(tmp_path, comparison, monkeypatch)
    command = own_command(comparison, prepared, tmp_path / "run")
    tokenizer = command[command.index("--tokenizer") + 1]
    source = command[command.index("--data") + 1]
    section = load_profile(comparison.shape.profile, environment={}).profile.data
    found = prepare_dataset(
        section.model_copy(update={"sources": (source,), "tokenizer": tokenizer}),
        comparison.shape.model.vocab_size,
        PrepareContext(1, lambda event: None, lambda: None),
    ).shards
    with found:
        assert found.index.key == prepared.key
        assert found.train.read(0, 5000).tolist() == ids_of(prepared)


def test_text_is_tokenized_as_ours_will_find_it(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"a line of text, number {i}" for i in range(3000)))
    asked = replace(comparison, tokens="text", text=str(text))
    prepared = prepared_in(tmp_path, asked, monkeypatch)
    assert prepared.sources == (str(text),)
    with open_prepared(prepared.tokens_file.parent) as data:
        assert data.index.key == prepared.key
        assert data.train.num_tokens == prepared.tokens


def test_batches_are_windows_and_what_follows_them(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepared_in(tmp_path, comparison, monkeypatch)
    inputs, targets = next(random_batches(train_job(comparison, prepared, tmp_path)))
    assert inputs.shape == targets.shape == (2, 32)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_the_naive_model_is_causal_and_starts_knowing_nothing(comparison: Comparison) -> None:
    torch.manual_seed(0)
    section = comparison.shape.model
    model = NaiveGpt2(section)
    tokens = torch.randint(section.vocab_size, (2, section.context))
    logits, loss = model(tokens, tokens)
    assert loss.item() == pytest.approx(math.log(section.vocab_size), rel=0.05)
    changed = tokens.clone()
    changed[:, 20] = (changed[:, 20] + 1) % section.vocab_size
    other, _ = model(changed, tokens)
    assert torch.allclose(logits[:, :20], other[:, :20], atol=1e-6)
    assert not torch.allclose(logits[:, 20:], other[:, 20:], atol=1e-6)


@pytest.mark.usefixtures("threads_restored")
def test_the_naive_baseline_times_every_step(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepared_in(tmp_path, comparison, monkeypatch)
    trained = train_system(train_job(comparison, prepared, tmp_path))
    assert len(trained.step_s) == 3
    assert min(trained.step_s) > 0
    assert trained.precision == "fp32"


@pytest.mark.usefixtures("threads_restored")
def test_peaks_are_of_the_products_asked_for(tmp_path: Path) -> None:
    peaks = measure_peaks(PeakJob(products=((16, 16, 16),), threads=1))
    assert peaks.bf16_flops > 0
    assert peaks.fp32_flops > 0


@pytest.mark.usefixtures("threads_restored")
def test_a_worker_reads_a_job_and_writes_a_result(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepared_in(tmp_path, comparison, monkeypatch)
    job, result = tmp_path / "job.json", tmp_path / "result.json"
    job.write_text(train_job(comparison, prepared, tmp_path).model_dump_json())
    main(["train", str(job), str(result)])
    assert '"step_s"' in result.read_text()
