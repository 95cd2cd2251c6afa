"""The engine from Python: plain arguments in, values and events out."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from llmtrain import engine
from llmtrain.engine.paired_evaluation import evaluate_models
from llmtrain.errors import DataError, DoesNotFitError, UsageError
from llmtrain.eval.bootstrap import paired_difference
from llmtrain.generate.sampling import Sampling
from llmtrain.profile.schema import DeviceSection
from llmtrain.train.events import Evaluated, Event, Saved, Started, Step, TrainResult
from tests import small

SETTINGS: dict[str, Any] = {
    **small.SETTINGS,
    "train.steps": 12,
    "optim.warmup_steps": 5,
    "eval.every_steps": 6,
    "eval.tokens": 512,
    "eval.sample_every_steps": None,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(300)]
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n".join(" ".join(draw.choices(words, k=9)) for _ in range(800)))
    return path


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    out = tmp_path_factory.mktemp("runs") / "run"
    return engine.train("cpu-tiny", data=[str(corpus)], settings=SETTINGS, out=out)


def test_plan_decides_without_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    planned = engine.plan("cpu-tiny", SETTINGS)

    assert (planned.plan.device.value, planned.plan.threads.value) == ("cpu", 1)
    assert planned.plan.micro_batch.value * planned.plan.accumulation.value == 8
    assert 0 < planned.prediction.total_bytes <= planned.limit_bytes
    assert list(tmp_path.iterdir()) == []


def test_train_returns_what_came_out_and_tells_what_happens(corpus: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    result = engine.train(
        "cpu-tiny",
        data=[str(corpus)],
        settings=SETTINGS,
        out=tmp_path / "run",
        observe=events.append,
    )

    assert (result.steps, result.tokens, result.stopped) == (12, 12 * 256, "done")
    assert result.run == tmp_path / "run"
    assert result.checkpoint is not None
    assert [e.step for e in events if isinstance(e, Step)] == list(range(1, 13))
    assert [e.val_loss for e in events if isinstance(e, Evaluated)][-1] == result.val_loss
    assert [e.path for e in events if isinstance(e, Saved)][-1] == result.checkpoint
    (started,) = [e for e in events if isinstance(e, Started)]
    assert (started.horizon_steps, started.from_step) == (12, 0)


def test_a_model_is_compared_with_itself(trained: TrainResult) -> None:
    assert trained.checkpoint is not None
    runs = [str(trained.run), str(trained.checkpoint)]
    device = DeviceSection(kind="cpu")
    first, second = evaluate_models(runs, [], device, lambda event: None, lambda: None)
    difference = paired_difference(first.losses, second.losses)

    assert first.bits_per_byte == second.bits_per_byte
    assert difference.bits_per_byte == 0
    assert (difference.interval.low, difference.interval.high) == (0, 0)


def test_calls_say_nothing_of_their_own(
    trained: TrainResult, corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    engine.train("cpu-tiny", data=[str(corpus)], settings=SETTINGS, out=tmp_path / "run")
    engine.evaluate(trained.run)
    list(engine.generate(trained.run, max_tokens=2))

    assert capfd.readouterr() == ("", "")


def test_equal_calls_train_equal_models(trained: TrainResult, corpus: Path, tmp_path: Path) -> None:
    again = engine.train("cpu-tiny", data=[str(corpus)], settings=SETTINGS, out=tmp_path / "run")

    assert trained.checkpoint is not None
    assert again.checkpoint is not None
    ours, theirs = (c / "model.safetensors" for c in (again.checkpoint, trained.checkpoint))
    assert ours.read_bytes() == theirs.read_bytes()


def test_settings_count_as_flags_when_a_run_is_resumed(corpus: Path, tmp_path: Path) -> None:
    arguments = {"data": [str(corpus)], "out": tmp_path / "run", "resume": "auto"}
    engine.train("cpu-tiny", settings=SETTINGS, **arguments)
    longer = engine.train("cpu-tiny", settings=SETTINGS | {"train.steps": 15}, **arguments)
    assert longer.steps == 15

    with pytest.raises(UsageError, match=r"train\.seed is 0 .* 1 now"):
        engine.train("cpu-tiny", settings=SETTINGS | {"train.seed": 1}, **arguments)


def test_evaluate_agrees_with_the_runs_own_evaluation(trained: TrainResult, corpus: Path) -> None:
    found = engine.evaluate(trained.run, device="cpu")
    assert trained.val_loss is not None
    assert found.loss_nats_per_token == pytest.approx(trained.val_loss, rel=0.02)
    assert found.perplexity > 1

    whole = engine.evaluate(str(trained.run), data=[str(corpus)])
    assert whole.bytes == corpus.stat().st_size


def test_generate_yields_pieces_of_the_text(trained: TrainResult) -> None:
    def drawn(seed: int) -> list[str]:
        sampling = Sampling(temperature=1.0, seed=seed)
        return list(engine.generate(trained.run, "abc", max_tokens=20, sampling=sampling))

    pieces = drawn(1)
    assert len(pieces) > 1
    assert pieces == drawn(1)
    assert pieces != drawn(2)


@pytest.mark.parametrize(
    ("settings", "data", "error"),
    [
        ({"train.stepz": 3}, (), UsageError),
        ({"model.num_layers": 10_000_000}, (), DoesNotFitError),
        ({}, ("no/such/text.txt",), DataError),
        ({"device.kind": "abacus"}, (), UsageError),
    ],
)
def test_failures_are_errors_of_the_package(
    settings: dict[str, Any], data: tuple[str, ...], error: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(error):
        engine.train("cpu-tiny", data=data, settings=SETTINGS | settings, out=tmp_path / "run")


def test_unknown_device_of_an_evaluation_is_a_usage_error(trained: TrainResult) -> None:
    with pytest.raises(UsageError, match="abacus"):
        engine.evaluate(trained.run, device="abacus")
