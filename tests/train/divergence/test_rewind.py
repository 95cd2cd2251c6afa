"""Bad numbers never reach the weights: a run gets over a fault that passes, and ends at one that
does not. What came of it does not depend on interruptions."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmtrain.engine import train_run
from llmtrain.errors import DivergedError
from llmtrain.progress import Note
from llmtrain.train.build import build_run
from llmtrain.train.checkpoint.format import load_checkpoint
from llmtrain.train.checkpoint.names import list_checkpoints
from llmtrain.train.distributed.rounds import Rounds
from llmtrain.train.divergence import policy, rewind
from llmtrain.train.events import Event, Step
from llmtrain.train.loop import Run
from tests.train.harness import Files, InProcessTrainer, Llmtrain, RunAlone

PER_STEP = 8  # windows
Fault = Callable[[Run], None]
When = Callable[[Run], bool]
Inject = Callable[[Fault], list[Run]]


def at_steps(*steps: int) -> When:
    """While a step's batch is read that an undisturbed run would read in these steps."""
    return lambda run: run.position.windows // PER_STEP + 1 in steps


def from_step(step: int) -> When:
    """From that step's batch on, whatever the run does about it."""
    return lambda run: run.position.windows // PER_STEP + 1 >= step


def activation(name: str, when: When, value: float = math.nan) -> Fault:
    """One number that a module returns is `value` in training."""

    def inject(run: Run) -> None:
        def spoil(_module: nn.Module, _args: object, out: Tensor) -> Tensor:
            if not (torch.is_grad_enabled() and when(run)):
                return out
            one = torch.zeros(out.shape, dtype=torch.bool)
            one.view(-1)[0] = True
            return torch.where(one, value, out)

        run.model.get_submodule(name).register_forward_hook(spoil)

    return inject


def gradient(name: str, when: When, value: float = math.nan) -> Fault:
    """One number of a parameter's gradient is `value`."""

    def inject(run: Run) -> None:
        def spoil(grad: Tensor) -> Tensor:
            return grad.clone().fill_(value) if when(run) else grad

        run.model.get_parameter(name).register_hook(spoil)

    return inject


def text(step: int, count: int = 1) -> Fault:
    """Some windows of a step's batch break the embedding, whenever they are read."""

    def inject(run: Run) -> None:
        poison = torch.from_numpy(run.batches.read((step - 1) * PER_STEP + 2, count)[0])

        def spoil(_module: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
            tokens = args[0]
            if tokens.shape[1] != poison.shape[1]:
                return out
            hit = (tokens[:, None] == poison[None]).all(dim=-1).any(dim=-1)
            return torch.where(hit[:, None, None], math.inf, out)

        run.model.model.embed_tokens.register_forward_hook(spoil)

    return inject


def row_of_weights(step: int) -> Fault:
    """A row of the embedding is no longer finite, as from a fault of memory, until it is loaded."""

    def inject(run: Run) -> None:
        def spoil(*_: object) -> None:
            if torch.is_grad_enabled() and run.position.windows == (step - 1) * PER_STEP:
                run.model.model.embed_tokens.weight.data[7] = math.nan
                if run.model.casts is not None:
                    run.model.casts.forget()

        run.model.register_forward_pre_hook(spoil)

    return inject


@pytest.fixture
def inject(monkeypatch: pytest.MonkeyPatch) -> Inject:
    """Every run that is built has the fault; returns them as they come."""
    runs: list[Run] = []

    def install(fault: Fault) -> list[Run]:
        def build(*args: Any) -> Run:
            run = build_run(*args)
            fault(run)
            runs.append(run)
            return run

        monkeypatch.setattr(train_run, "build_run", build)
        return runs

    return install


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewinds go back 6 steps, so that these short runs have something before that."""
    monkeypatch.setattr(policy, "REWIND_STEPS", 6)


def lines(files: Files, kind: str) -> list[dict[str, Any]]:
    return [line for line in files.lines("metrics.jsonl") if kind in line]


def warnings(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note) and event.is_warning]


def assert_finite(run: Path) -> None:
    for path in list_checkpoints(run / "checkpoints"):
        found = load_checkpoint(path)
        for tensors in (found.weights, found.optimizer):
            assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def loss(when: When) -> Fault:
    """The sum of a micro-batch overflows."""

    def inject(run: Run) -> None:
        run.model.register_forward_hook(
            lambda _module, _args, nats: nats + math.inf if when(run) else nats
        )

    return inject


PASSING: dict[str, tuple[Fault, str, str]] = {
    "gradient": (
        gradient("model.layers.0.mlp.up_proj.weight", at_steps(7), math.inf),
        "its gradient norm is",
        "each window alone is finite",  # when it is computed again
    ),
    "activation": (
        activation("model.layers.1.mlp", at_steps(7)),
        "its loss is nan",
        "each window alone is finite",
    ),
    "loss": (loss(at_steps(7)), "its loss is inf", "each window alone is finite"),
    "text": (text(7), "its loss is nan", "in the forward, the output of model.embed_tokens; of"),
}


@pytest.mark.parametrize(("fault", "reason", "where"), PASSING.values(), ids=PASSING)
def test_a_fault_of_one_batch_costs_its_step_alone(
    fault: Fault,
    reason: str,
    where: str,
    train: InProcessTrainer,
    inject: Inject,
    place: Path,
    reference: Files,
) -> None:
    inject(fault)
    result = train(place / "run", checkpoint__every_steps=5)

    assert (result.stopped, result.steps, result.tokens) == ("done", 20, 20 * 256)
    assert_finite(place / "run")
    (line,) = lines(Files(place / "run"), "skipped")
    assert (line["step"], line["skipped"]) == (7, True)
    for part in (reason, "at learning rate 0.0", where, "of the training text, '"):
        assert part in line["reason"]
    assert warnings(train.events) == [f"step 7 is skipped: {line['reason']}"]
    assert [e.step for e in train.events if isinstance(e, Step)] == [*range(1, 7), *range(8, 21)]
    course, whole = Files(place / "run").course(), reference.course()
    assert course[:6] == whole[:6]
    assert course[-1] != whole[-1]
    assert Files(place / "run").newest.name == "step-00000020"


def test_memory_that_does_not_last_for_looking_ends_no_run(
    train: InProcessTrainer,
    inject: Inject,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inject(PASSING["text"][0])
    diagnose, tries = rewind.diagnose, iter([True, False])

    def short_of_memory(run: Run, first_window: int) -> Any:
        if next(tries):
            raise MemoryError
        return diagnose(run, first_window)

    monkeypatch.setattr(rewind, "diagnose", short_of_memory)
    assert train(place / "run").stopped == "done"
    (line,) = lines(Files(place / "run"), "skipped")
    assert "the output of model.embed_tokens" in line["reason"]
    assert [text for text in warnings(train.events) if "micro-batch 4 × 2" in text]


BREAKING: dict[str, Fault] = {
    "activation": activation("model.layers.1.mlp", at_steps(*range(12, 17))),
    "gradient": gradient("model.norm.weight", at_steps(*range(12, 17))),
    "weights": row_of_weights(12),
}


@pytest.mark.parametrize(
    ("kind", "every", "last_bad"),
    [("activation", 100, 16), ("gradient", 4, 16), ("weights", 3, 12)],
)
def test_a_fault_that_skipping_does_not_help_rewinds_the_run(
    kind: str,
    every: int,
    last_bad: int,
    train: InProcessTrainer,
    inject: Inject,
    place: Path,
    near: None,
) -> None:
    inject(BREAKING[kind])
    result = train(place / "run", checkpoint__every_steps=every)

    assert (result.stopped, result.steps) == ("done", 20)
    assert_finite(place / "run")
    run = Files(place / "run")
    assert lines(run, "skipped") == []  # of steps that are no longer the run's
    (jump,) = lines(run, "rewound_from")
    assert (jump["step"], jump["rewound_from"]) == (5, last_bad)
    assert jump["windows"] == last_bad * PER_STEP
    losses = [line["step"] for line in lines(run, "loss")]
    assert losses == list(range(1, 21))
    assert f"rewound from step {last_bad} to step 5" in warnings(train.events)[-1]
    state = load_checkpoint(run.newest).state
    assert (state.step, state.windows) == (20, (last_bad + 15) * PER_STEP)
    assert state.tokens == 20 * 256
    assert state.finished


LASTING: dict[str, tuple[Fault, str]] = {
    "activation": (
        activation("model.layers.1.mlp", from_step(12)),
        "each window alone|in the forward, the output of model.layers.1.mlp",
    ),
    "gradient": (
        gradient("model.layers.0.mlp.up_proj.weight", from_step(12)),
        "in the backward, the gradient of model.layers.0.mlp.up_proj.weight",
    ),
    "from the first step": (
        activation("model.layers.0.self_attn.v_proj", from_step(1)),
        "in the forward, the output of model.layers.0.self_attn.v_proj",
    ),
}


@pytest.mark.parametrize(("fault", "place_named"), LASTING.values(), ids=LASTING)
def test_a_fault_that_stays_ends_the_run_with_a_diagnosis(
    fault: Fault,
    place_named: str,
    train: InProcessTrainer,
    inject: Inject,
    place: Path,
    near: None,
) -> None:
    runs = inject(fault)
    with pytest.raises(DivergedError, match=place_named) as failure:
        train(place / "run", checkpoint__every_steps=4)

    assert failure.value.exit_code == 4
    message = failure.value.message
    assert message.startswith("step ")
    assert "learning rate 0.0" in message
    assert "of the training text, '" in message
    assert "after 2 rewinds" in message
    assert "\n" not in message
    where = re.search(r"text, ('.*'), in corpus.txt from character (\d+) on", message)
    assert where is not None
    begins = ast.literal_eval(where[1])
    assert (place / "corpus.txt").read_text()[int(where[2]) :].startswith(begins)
    assert failure.value.hint is not None
    assert all(bool(torch.isfinite(p).all()) for p in runs[0].model.parameters())
    assert_finite(place / "run")
    newest = Files(place / "run").newest
    assert str(newest) in message
    assert not load_checkpoint(newest).state.finished


def test_the_command_line_ends_with_code_4_and_a_document(
    llmtrain: Llmtrain, inject: Inject, place: Path
) -> None:
    inject(activation("model.layers.1.mlp", from_step(8)))
    outcome = llmtrain(
        *("train", "-p", "tiny.yaml", "--out", "run", "--json"),
        *("--set", "checkpoint.every_steps=4"),
    )
    assert outcome.code == 4
    error = json.loads(outcome.out)["error"]
    assert error["code"] == 4
    assert "model.layers.1.mlp" in error["message"]
    assert "warning: step 8 is skipped" in outcome.err
    assert outcome.err.splitlines()[-2].startswith("error: step ")
    assert "Traceback" not in outcome.err
    assert_finite(Path("run"))
    assert Files(Path("run")).newest.name.startswith("step-")


def after_step(step: int) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, Step) and event.step == step


def after_skip(step: int) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, Note) and event.text.startswith(f"step {step} is skip")


INTERRUPTIONS: dict[str, list[Callable[[Event], bool]]] = {
    "among skipped steps": [after_skip(13)],
    "at the last skipped step": [after_skip(15)],
    "often": [after_step(7), after_skip(14), after_skip(16), after_step(3), after_step(18)],
}


@pytest.fixture(scope="module")
def rewound(run_alone: RunAlone) -> Files:
    """A run that was rewound, and that nothing interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "REWIND_STEPS", 6)

        def build(*args: Any) -> Run:
            run = build_run(*args)
            BREAKING["activation"](run)
            return run

        patch.setattr(train_run, "build_run", build)
        return run_alone(checkpoint__every_steps=100)


def test_a_rewound_run_is_the_run_that_read_the_other_text(
    train: InProcessTrainer, inject: Inject, place: Path, rewound: Files
) -> None:
    """What it did before the step that it is rewound to, it did as if nothing were to come."""

    def skip_on(run: Run) -> None:
        whole_read = run.batches.read

        def read(first: int, count: int) -> Any:
            return whole_read(first if first < 5 * PER_STEP else first + 11 * PER_STEP, count)

        run.batches.read = read  # type: ignore[method-assign]

    inject(skip_on)
    train(place / "run")
    assert Files(place / "run").digests() == rewound.digests()


@pytest.mark.parametrize("moments", INTERRUPTIONS.values(), ids=INTERRUPTIONS)
def test_interrupted_and_rewound_is_as_only_rewound(
    moments: list[Callable[[Event], bool]],
    train: InProcessTrainer,
    inject: Inject,
    place: Path,
    near: None,
    rewound: Files,
) -> None:
    inject(BREAKING["activation"])
    for moment in moments:
        train(place / "run", stop_at=moment, resume="auto", checkpoint__every_steps=100)
    result = train(place / "run", resume="auto", checkpoint__every_steps=100)

    assert result.stopped == "done"
    assert Files(place / "run").digests() == rewound.digests()
    assert Files(place / "run").course() == rewound.course()


def test_what_an_earlier_rewind_gave_up_is_not_gone_back_to(
    train: InProcessTrainer, inject: Inject, place: Path, near: None
) -> None:
    """Nothing was saved between the two, so that it still looks like the newest state."""
    inject(activation("model.norm", at_steps(*range(12, 17), *range(31, 36))))
    settings = {"train__steps": 30, "eval__every_steps": 100, "checkpoint__every_steps": 100}
    train(place / "whole", **settings)
    train(place / "run", stop_at=after_step(8), **settings)
    assert Files(place / "run").checkpoints == ["step-00000009"]
    train(place / "run", resume="auto", **settings)

    jumps = lines(Files(place / "run"), "rewound_from")
    assert [(jump["step"], jump["rewound_from"]) for jump in jumps] == [(5, 16), (13, 24)]
    assert Files(place / "run").digests() == Files(place / "whole").digests()


def test_interrupted_around_a_skipped_step_is_as_uninterrupted(
    train: InProcessTrainer, inject: Inject, place: Path
) -> None:
    inject(PASSING["activation"][0])
    train(place / "whole")
    train(place / "run", stop_at=after_step(6))
    train(place / "run", stop_at=after_skip(7), resume="auto")
    train(place / "run", resume="auto")
    assert Files(place / "run").digests() == Files(place / "whole").digests()
    assert Files(place / "run").course() == Files(place / "whole").course()


def test_killed_while_it_goes_on_from_a_rewind_is_as_not_killed(
    train: InProcessTrainer,
    inject: Inject,
    place: Path,
    near: None,
    rewound: Files,
) -> None:
    """Without a word saved since the rewind, it finds the same fault and does the same again."""
    inject(BREAKING["activation"])

    class Killed(BaseException):
        pass

    def die(event: Event) -> bool:
        if isinstance(event, Note) and "rewound" in event.text:
            raise Killed
        return False

    with pytest.raises(Killed):
        train(place / "run", stop_at=die, checkpoint__every_steps=3)
    train(place / "run", resume="auto", checkpoint__every_steps=3)
    assert Files(place / "run").digests() == rewound.digests()
    assert Files(place / "run").course() == rewound.course()


def test_what_a_rewind_gave_up_is_kept_aside_once_there_is_a_newer_state(
    train: InProcessTrainer, inject: Inject, place: Path, near: None
) -> None:
    inject(BREAKING["activation"])
    train(
        place / "run",
        checkpoint__every_steps=7,
        checkpoint__keep_last=9,
        checkpoint__keep_best=False,
        eval__every_steps=100,
    )
    assert Files(place / "run").checkpoints == [
        "step-00000007",  # of the course that was taken in the end
        "step-00000014",
        "step-00000014.superseded",
        "step-00000020",
    ]


def test_a_damaged_state_is_not_rewound_to(
    train: InProcessTrainer,
    inject: Inject,
    place: Path,
    near: None,
    rewound: Files,
) -> None:
    inject(BREAKING["activation"])

    def damage(event: Event) -> bool:
        if isinstance(event, Step) and event.step == 11:
            (place / "run" / "checkpoints" / "step-00000004" / "model.safetensors").write_bytes(b"")
        return False

    train(place / "run", stop_at=damage, checkpoint__every_steps=4, checkpoint__keep_last=9)
    assert Files(place / "run").digests() == rewound.digests()


def test_a_later_state_is_taken_where_the_way_from_an_earlier_one_is_too_long(
    train: InProcessTrainer,
    inject: Inject,
    place: Path,
    near: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rewind, "_LONGEST_REPLAY_STEPS", 2)
    inject(BREAKING["activation"])
    train(place / "run", checkpoint__every_steps=4, eval__every_steps=100)
    (jump,) = lines(Files(place / "run"), "rewound_from")
    assert jump["step"] == 8


def test_a_run_that_ended_so_ends_so_again_and_keeps_what_it_has(
    train: InProcessTrainer, llmtrain: Llmtrain, inject: Inject, place: Path, near: None
) -> None:
    inject(activation("model.norm", from_step(12)))
    with pytest.raises(DivergedError):
        train(place / "run", checkpoint__every_steps=1)
    checkpoints = [path.name for path in list_checkpoints(place / "run" / "checkpoints")]
    assert checkpoints[-1] == "step-00000015"  # with the weights of step 11
    outcome = llmtrain("train", "--out", "run", "--resume", "auto")
    assert outcome.code == 4
    assert "the output of model.norm" in outcome.err
    assert [p.name for p in list_checkpoints(place / "run" / "checkpoints")] == checkpoints


def test_weights_that_break_at_the_very_end_are_not_what_is_left(
    train: InProcessTrainer, inject: Inject, place: Path
) -> None:
    inject(row_of_weights(20))
    assert train(place / "run").stopped == "done"
    assert_finite(place / "run")
    assert [line["rewound_from"] for line in lines(Files(place / "run"), "rewound_from")] == [20]


def test_a_run_interrupted_where_it_was_to_end_ends_at_once(
    train: InProcessTrainer, inject: Inject, place: Path
) -> None:
    inject(activation("model.norm", from_step(1)))
    is_third = iter([False, False, True])

    def in_its_last_step(event: Event) -> bool:
        return after_skip(4)(event) and next(is_third)

    stopped = train(place / "run", stop_at=in_its_last_step)
    assert (stopped.stopped, stopped.steps, stopped.train_loss) == ("interrupted", 5, None)
    train.events.clear()
    with pytest.raises(DivergedError, match=r"the output of model\.norm.*after 2 rewinds"):
        train(place / "run", resume="auto")
    assert not [event for event in train.events if isinstance(event, Step)]
    assert warnings(train.events) == []


def test_steps_that_another_rank_left_out_are_named_as_its_own(
    train: InProcessTrainer, place: Path, near: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = Rounds._shared

    def with_a_bad_rank(rounds: Rounds) -> Any:
        tokens, losses, window_s, left_out = shared(rounds)
        if rounds.begun_step < 8:
            return tokens, losses, window_s, left_out
        return tokens, [math.nan] * len(losses), window_s, {1: len(losses)}

    monkeypatch.setattr(Rounds, "_shared", with_a_bad_rank)
    with pytest.raises(DivergedError) as failure:
        train(place / "run", train__sync_every=4)

    named = "rank 1 left out 4 of the round's 4 steps: not finite"
    assert failure.value.message.startswith(f"step 16: {named}; of the last ")
    warnings = [e.text for e in train.events if isinstance(e, Note) and e.is_warning]
    assert f"step 12: {named}" in warnings
