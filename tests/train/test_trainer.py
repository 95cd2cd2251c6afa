from __future__ import annotations

import json
import math
import random
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from llmtrain.engine import train_run
from llmtrain.errors import DivergedError, LlmtrainError
from llmtrain.eval.evaluate import LossSum
from llmtrain.progress import Note, Progress
from llmtrain.train.checkpoint import saver
from llmtrain.train.checkpoint.format import load_checkpoint
from llmtrain.train.distributed.world import World
from llmtrain.train.evaluation import Evaluator
from llmtrain.train.events import Evaluated, Sampled, Saved, Started, Step, metrics_line
from tests.train.harness import Files, InProcessTrainer, Llmtrain


def test_events_tell_the_run_in_order(train: InProcessTrainer, place: Path) -> None:
    result = train(place / "run", train__log_every_steps=5)

    events = [e for e in train.events if isinstance(e, (Started, Step, Evaluated, Sampled, Saved))]
    assert isinstance(events[0], Started)
    assert [e.step for e in events if isinstance(e, Step)] == list(range(1, 21))
    assert [e.step for e in events if isinstance(e, Step) and e.is_logged] == [1, 5, 10, 15, 20]
    assert [e.step for e in events if isinstance(e, Evaluated)] == [10, 20]
    assert [type(e) for e in events[-3:]] == [Evaluated, Sampled, Saved]
    assert (result.steps, result.tokens, result.stopped) == (20, 20 * 256, "done")
    assert result.train_loss < 5.5 < events[1].loss


def test_nothing_is_left_after_the_last_step_and_what_follows_is_said(
    train: InProcessTrainer, place: Path
) -> None:
    train(place / "run", train__steps=10)

    steps = [event for event in train.events if isinstance(event, Step)]
    assert steps[-1].remaining_s == 0
    assert all(step.remaining_s for step in steps[3:-1])
    after = train.events[train.events.index(steps[-1]) + 1 :]
    activities = [event.phase for event in after if isinstance(event, Progress)]
    assert [phase.split(" (")[0] for phase in activities] == [
        f"step 10: {activity}" for activity in ("evaluating", "sampling", "saving")
    ]


def test_first_and_last_steps_are_always_logged(train: InProcessTrainer, place: Path) -> None:
    train(place / "run", train__log_every_steps=7, train__steps=20)

    steps = [line["step"] for line in Files(place / "run").lines("metrics.jsonl") if "loss" in line]
    assert steps == [1, 7, 14, 20]


def test_metrics_have_the_columns_of_the_contract(reference: Files) -> None:
    first, last = reference.lines("metrics.jsonl")[0], reference.lines("metrics.jsonl")[-1]
    assert set(first) == {
        *("step", "tokens", "loss", "lr", "grad_norm", "tokens_per_s", "mfu"),
        *("memory_bytes", "memory_available_bytes", "memory_percent", "elapsed_s"),
    }
    assert set(last) == {"step", "val_loss", "val_bpb"}


def test_samples_hold_the_prompt_and_the_text(train: InProcessTrainer, place: Path) -> None:
    train(place / "run", eval__prompts=["abc", ""], eval__sample_every_steps=20)

    samples = Files(place / "run").lines("samples.jsonl")
    assert [(line["step"], line["prompt"]) for line in samples] == [(20, "abc"), (20, "")]
    assert all(line["text"] for line in samples)


def test_sampling_changes_nothing_of_the_training(
    train: InProcessTrainer, place: Path, reference: Files
) -> None:
    train(place / "run", eval__sample_every_steps=None, eval__every_steps=7)

    assert Files(place / "run").digests() == reference.digests()


def test_only_the_newest_checkpoints_are_kept(train: InProcessTrainer, place: Path) -> None:
    train(
        place / "run",
        checkpoint__every_steps=4,
        checkpoint__keep_last=3,
        checkpoint__keep_best=False,
    )

    assert Files(place / "run").checkpoints == ["step-00000012", "step-00000016", "step-00000020"]


def test_the_best_checkpoint_is_kept_though_it_is_old(train: InProcessTrainer, place: Path) -> None:
    train(
        place / "run",
        # it learns for a while, and is then taken apart
        optim__decay_fraction=0.0,
        optim__warmup_steps=20,
        optim__name="adamw",
        optim__learning_rate=1.0,
        eval__every_steps=2,
        checkpoint__keep_last=1,
    )

    evaluated = [e for e in train.events if isinstance(e, Evaluated)]
    best = min(evaluated, key=lambda e: e.val_loss).step
    assert best < 20
    assert Files(place / "run").checkpoints == [f"step-{best:08d}", "step-00000020"]
    assert load_checkpoint(Files(place / "run").newest).state.best_step == best


@pytest.mark.parametrize("patience", [1, 3])
def test_patience_ends_the_run_after_so_many_evaluations_without_a_best(
    patience: int, train: InProcessTrainer, place: Path
) -> None:
    result = train(
        place / "run",
        eval__patience=patience,
        eval__every_steps=1,
        eval__sample_every_steps=None,
        optim__name="adamw",
        optim__learning_rate=10.0,
        optim__warmup_steps=0,
    )

    evaluated = [e.val_loss for e in train.events if isinstance(e, Evaluated)]
    assert result.stopped == "done"
    assert result.steps == len(evaluated) < 20
    best = evaluated.index(min(evaluated))
    assert len(evaluated) - 1 - best == patience
    assert load_checkpoint(result.checkpoint).state.finished


def test_divergence_leaves_the_last_checkpoint(train: InProcessTrainer, place: Path) -> None:
    with pytest.raises(DivergedError, match="learning rate") as failure:
        train(
            place / "run",
            optim__learning_rate=9e29,
            optim__warmup_steps=0,
            train__gradient_clip=None,
            checkpoint__every_steps=1,
        )

    assert failure.value.exit_code == 4
    state = load_checkpoint(Files(place / "run").newest).state
    assert not state.finished


def test_validation_that_is_not_a_number_is_no_best_and_can_be_saved(
    train: InProcessTrainer,
    place: Path,
    llmtrain: Llmtrain,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = iter([6.0, math.nan])

    def look(self: Evaluator, windows: int | None = None) -> LossSum:
        return LossSum(next(looks), 1)

    monkeypatch.setattr(Evaluator, "validation_loss", look)
    result = train(place / "run", eval__every_steps=10)

    assert (result.val_loss, result.val_bpb) == (None, None)
    state = load_checkpoint(Files(place / "run").newest).state
    assert (state.val_loss, state.best_val_loss, state.best_step) == (None, 6.0, 10)
    text = (place / "run" / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert [m["val_loss"] for m in Files(place / "run").course() if "val_loss" in m] == [6.0, None]
    assert llmtrain("runs", "show", "run").code == 0


def test_numbers_that_json_does_not_have_are_null() -> None:
    values = metrics_line(Evaluated(3, math.inf, math.nan, False))
    assert values == {"step": 3, "val_loss": None, "val_bpb": None}


def test_record_says_what_was_asked_decided_and_used(reference: Files) -> None:
    record = yaml.safe_load((reference.path / "run.yaml").read_text())

    assert record["profile"]["model"]["hidden_size"] == 32
    assert record["origins"]["model.hidden_size"] == "tiny.yaml:2"
    assert record["plan"]["precision"]["reason"]
    assert record["plan"]["threads"] == {"value": 1, "reason": "asked for"}
    assert {"python", "torch"} <= set(record["versions"])
    assert len(record["data"]["corpus_sha256"]) == 64
    assert record["data"]["sources"][0]["spec"] == "corpus.txt"
    assert record["result"]["stopped"] == "done"
    assert len(record["sessions"]) == 1


def test_state_says_where_the_run_stands(reference: Files) -> None:
    state = json.loads((reference.newest / "state.json").read_text())

    assert (state["step"], state["tokens"], state["windows"]) == (20, 20 * 256, 20 * 8)
    assert state["finished"] is True
    assert state["horizon_steps"] == 20
    assert state["val_loss"] == reference.course()[-1]["val_loss"]
    assert state["not_bitwise_from_step"] is None


def test_seed_decides_the_run(train: InProcessTrainer, place: Path, reference: Files) -> None:
    train(place / "same", train__seed=0)
    train(place / "other", train__seed=1)

    assert Files(place / "same").course() == reference.course()
    assert Files(place / "other").course()[0]["loss"] != reference.course()[0]["loss"]


def test_interruption_while_tokenizing_is_no_failure_and_leaves_nothing(
    train: InProcessTrainer, place: Path, corpus_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(place / "first", train__steps=1)
    tokenizer = place / "first" / "checkpoints" / "step-00000001"
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(place / "cache"))
    (place / "corpus.txt").write_text(corpus_text * 150)

    result = train(
        place / "run",
        stop_at=lambda event: isinstance(event, Progress) and event.phase == "tokenizing",
        data__tokenizer=str(tokenizer),
    )

    assert (result.stopped, result.steps, result.checkpoint) == ("interrupted", 0, None)
    assert not (place / "run").exists()
    assert list((place / "cache" / "shards").iterdir()) == []


def test_failure_before_training_leaves_no_directory(train: InProcessTrainer, place: Path) -> None:
    with pytest.raises(LlmtrainError):
        train(place / "runs" / "run", data__sources=["nowhere.txt"])

    assert not (place / "runs" / "run").exists()


def test_room_on_the_disk_is_looked_at_before_anything_is_prepared(
    train: InProcessTrainer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver, "free_bytes", lambda directory: 1000)
    with pytest.raises(LlmtrainError, match=r"a checkpoint of this run needs .*0.977 KiB are free"):
        train(place / "run")
    assert not [e for e in train.events if not (isinstance(e, Note) and "timing" in e.text)]
    assert not (place / "run").exists()


def test_little_room_is_warned_of(
    train: InProcessTrainer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_run, "free_bytes", lambda directory: 1000)
    train(place / "run", train__steps=1)
    warnings = [event.text for event in train.events if isinstance(event, Note)]
    assert any("4 more checkpoints will be saved" in text for text in warnings)


def test_nothing_is_drawn_from_generators_that_a_checkpoint_does_not_hold(
    train: InProcessTrainer, place: Path
) -> None:
    numpy = pytest.importorskip("numpy")
    before = random.getstate(), str(numpy.random.get_state())
    train(place / "run")
    assert (random.getstate(), str(numpy.random.get_state())) == before


def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_measured(
    train: InProcessTrainer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "file").write_text("")
    monkeypatch.setenv("LLMTRAIN_CACHE_DIR", str(place / "file" / "cache"))
    with pytest.raises(LlmtrainError, match=r"the cache .* cannot be written"):
        train(place / "run")
    assert not [event for event in train.events if "timing" in getattr(event, "text", "")]
    assert not (place / "run").exists()


def test_ranks_wait_for_a_whole_round_of_a_slower_one(
    train: InProcessTrainer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited_s = []

    def process_group(_world: World, _backend: str, timeout_s: float, _limit: str) -> object:
        waited_s.append(timeout_s)
        return nullcontext()

    monkeypatch.setattr(World, "process_group", process_group)
    settings = {"train__steps": 1, "device__collective_timeout": "60s"}
    train(place / "plain", **settings)
    train(place / "rounds", train__sync_every=30, **settings)
    train(place / "longest", train__sync_every=10**9, **settings)
    assert waited_s == [60.0, 1800.0, 1e6]
