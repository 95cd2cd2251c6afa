"""The policy has exact limits, and its state does not depend on what was saved."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llmtrain.train.divergence.policy import (
    REWIND_STEPS,
    DivergenceState,
    StepVerdict,
    judge,
    spike_limit,
)

RECORDED = json.loads((Path(__file__).parent / "recorded_losses.json").read_text())


def after(
    losses: list[float],
    divergence: DivergenceState | None = None,
    *,
    norm: float = 1.0,
    scaled: bool = False,
) -> tuple[list[StepVerdict], DivergenceState]:
    """Return the verdicts on steps of these losses after `divergence`, and the new state."""
    divergence, verdicts = divergence or DivergenceState(), []
    first = max([divergence.sound_step, *divergence.bad_steps]) + 1
    for step, loss in enumerate(losses, first):
        verdict, divergence = judge(
            divergence, step, loss, norm, is_scaled=scaled, skips_spikes=True
        )
        verdicts.append(verdict)
    return verdicts, divergence


def skipped(verdicts: list[StepVerdict]) -> list[int]:
    return [number for number, verdict in enumerate(verdicts) if verdict.skipped is not None]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([3.0] * 31, math.inf),
        ([3.0] * 32, 3.5),  # without any noise half a nat is a spike, and less is none
        ([3.0, 3.2] * 32, 3.1 + 10 * 1.4826 * 0.1),
        ([3.0, 3.1, 3.2] * 20 + [9.0] * 4, 3.1 + 10 * 1.4826 * 0.1),  # leaps do not widen the limit
        ([8.0 - i / 8 for i in range(64)], 4.0625 + 10 * 1.4826 * 2.0),  # a loss that falls fast
    ],
)
def test_the_limit_of_what_is_usual(losses: list[float], expected: float) -> None:
    assert spike_limit(losses) == pytest.approx(expected)


def test_a_loss_above_the_limit_is_a_spike_and_one_at_it_is_none() -> None:
    _, divergence = after([3.0] * 40)
    assert skipped(after([3.5], divergence)[0]) == []
    verdicts, divergence = after([3.6, 3.0], divergence)
    assert skipped(verdicts) == [0]
    assert "3.600" in str(verdicts[0].skipped)
    assert "3.500" in str(verdicts[0].skipped)
    assert verdicts[0].is_finite
    assert (divergence.sound_step, divergence.spikes) == (42, 0)


def test_nothing_is_a_spike_while_nothing_is_usual() -> None:
    assert skipped(after([3.0] * 31 + [1000.0])[0]) == []
    assert skipped(after([3.0] * 32 + [1000.0])[0]) == [32]


def test_spikes_are_not_looked_for_where_the_run_does_not_want_it() -> None:
    _, divergence = after([3.0] * 40)
    verdict, _ = judge(divergence, 41, 99.0, 1.0, is_scaled=False, skips_spikes=False)
    assert verdict.skipped is None


def test_a_loss_that_stays_high_is_trained_on_and_becomes_usual() -> None:
    verdicts, divergence = after([3.0] * 64 + [8.0] * 200)
    assert skipped(verdicts) == [64, 65, 66]
    assert spike_limit(divergence.losses) == 8.5
    assert skipped(after([8.0, 9.0, 8.0], divergence)[0]) == [1]


def test_spikes_alone_never_rewind() -> None:
    _, divergence = after([3.0] * 40)
    for _ in range(100):
        verdicts, divergence = after([50.0, 3.0, 3.0], divergence)
        assert skipped(verdicts) == [0]
        assert divergence.action == "continue"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_skipped_from_the_first_step_on(bad: float) -> None:
    verdicts, divergence = after([bad])
    assert [v.is_finite for v in verdicts] == [False]
    assert f"{bad:g}" in str(verdicts[0].skipped)
    verdicts, divergence = after([3.0], divergence, norm=bad)
    assert [v.is_finite for v in verdicts] == [False]
    assert (divergence.sound_step, divergence.bad_steps) == (0, (1, 2))
    assert divergence.losses == (3.0,)  # what is not finite is not among them


@pytest.mark.parametrize(
    ("bad_steps", "action"),
    [
        ((10, 11, 12, 13), "continue"),
        ((10, 11, 12, 13, 14), "rewind"),
        ((1, 20, 30, 40, 50), "rewind"),  # within 50 steps
        ((1, 20, 30, 40, 51), "continue"),
    ],
)
def test_five_bad_steps_of_fifty_are_too_many(bad_steps: tuple[int, ...], action: str) -> None:
    losses = [math.nan if step in bad_steps else 3.0 for step in range(1, bad_steps[-1] + 1)]
    divergence, actions = DivergenceState(), []
    for step, loss in enumerate(losses, 1):
        _, divergence = judge(divergence, step, loss, 1.0, is_scaled=False, skips_spikes=True)
        actions.append(divergence.action)
    assert actions[-1] == action
    assert set(actions[:-1]) == {"continue"}


def test_overflows_of_fp16_count_from_the_twenty_first_in_a_row_on() -> None:
    verdicts, divergence = after([3.0] * 20, norm=math.inf, scaled=True)
    assert skipped(verdicts) == []
    assert divergence.sound_step == 0  # the scaler withheld the updates
    assert skipped(after([3.0], divergence, norm=math.inf, scaled=True)[0]) == [0]
    _, divergence = after([3.0], divergence, scaled=True)
    assert skipped(after([3.0] * 20, divergence, norm=math.inf, scaled=True)[0]) == []
    assert skipped(after([math.nan], divergence, scaled=True)[0]) == [0]


def bad_after(sound_step: int, divergence: DivergenceState | None = None) -> DivergenceState:
    """The divergence after five bad steps that follow a sound one."""
    at = (divergence or DivergenceState()).model_copy(
        update={"sound_step": sound_step, "bad_steps": ()}
    )
    for step in range(sound_step + 1, sound_step + 6):
        _, at = judge(at, step, math.nan, 1.0, is_scaled=False, skips_spikes=True)
    return at


def test_a_rewind_goes_a_hundred_steps_back_from_the_last_sound_one() -> None:
    assert REWIND_STEPS == 100
    assert bad_after(250).rewind_step == 150
    assert bad_after(99).rewind_step == 0


def test_the_third_trouble_near_one_step_stops_the_run() -> None:
    divergence = bad_after(250)
    for sound_step in (251, 340):
        assert divergence.action == "rewind"
        divergence = bad_after(sound_step, divergence.with_rewind(divergence.rewind_step, 999, 0))
    assert divergence.action == "stop"


def test_a_trouble_that_comes_nearer_stops_the_run_too() -> None:
    divergence = bad_after(250)
    for sound_step in (150, 50):  # rewound, and not a step further
        assert divergence.action == "rewind"
        divergence = bad_after(sound_step, divergence.with_rewind(divergence.rewind_step, 999, 0))
    assert divergence.action == "stop"


def test_trouble_far_from_the_last_is_another() -> None:
    divergence = bad_after(250)
    for sound_step in (351, 452, 553):
        divergence = bad_after(sound_step, divergence.with_rewind(divergence.rewind_step, 999, 0))
        assert divergence.action == "rewind"
    assert divergence.rewinds == 1


def test_jumps_are_taken_again_up_to_the_last_rewind_and_not_beyond() -> None:
    divergence = DivergenceState().with_rewind(100, 2000, 205).with_rewind(180, 3000, 290)
    assert [(jump.step, jump.windows) for jump in divergence.jumps] == [(100, 2000), (180, 3000)]
    assert [divergence.cursor_after(step, 7) for step in (99, 100, 180, 181)] == [7, 2000, 3000, 7]
    divergence = divergence.with_rewind(60, 2500, 170)  # while what led to 3000 was computed again
    assert [(jump.step, jump.windows) for jump in divergence.jumps] == [(60, 3000)]


def test_a_state_is_of_the_course_up_to_where_that_turned_off() -> None:
    before, now = DivergenceState(), DivergenceState().with_rewind(100, 2000, 205)
    assert now.passed_through(100, before)
    assert not now.passed_through(101, before)
    assert now.passed_through(101, now)
    again = now.with_rewind(100, 3000, 206)
    assert again.passed_through(100, now)
    assert not again.passed_through(101, now)


def test_a_course_survives_being_saved() -> None:
    divergence = bad_after(250, after([3.0] * 40 + [9.0])[1]).with_rewind(150, 2000, 255)
    assert (
        DivergenceState.model_validate(json.loads(json.dumps(divergence.model_dump(mode="json"))))
        == divergence
    )


@dataclass
class Toy:
    """A run whose weights are the list of what updated them."""

    faults: frozenset[int]  # windows whose loss is not a number
    saved_at: frozenset[int]  # steps
    divergence: DivergenceState = field(default_factory=DivergenceState)
    step: int = 0
    windows: int = 0
    weights: tuple[int, ...] = ()

    def train(self, steps: int) -> tuple[int, ...] | None:
        """The weights in the end; None where it stopped."""
        saved = {0: (DivergenceState(), 0, ())}
        while self.step < steps:
            loss = math.nan if self.windows in self.faults else 3.0
            verdict, self.divergence = judge(
                self.divergence, self.step + 1, loss, 1.0, is_scaled=False, skips_spikes=True
            )
            if verdict.skipped is None:
                self.weights = (*self.weights, self.windows)
            self.step += 1
            self.windows = self.divergence.cursor_after(self.step, self.windows + 1)
            if self.divergence.action == "stop":
                return None
            if self.divergence.action == "rewind":
                self._rewind(saved)
            elif self.step in self.saved_at:
                saved[self.step] = (self.divergence, self.windows, self.weights)
        return self.weights

    def _rewind(self, saved: dict[int, tuple[DivergenceState, int, tuple[int, ...]]]) -> None:
        target = self.divergence.rewind_step
        own = [
            s
            for s, (divergence, *_) in saved.items()
            if self.divergence.passed_through(s, divergence)
        ]
        base = max(step for step in own if step <= target)
        for later in [step for step in saved if step > base]:
            del saved[later]
        self.divergence = self.divergence.with_rewind(target, self.windows, self.step)
        before, windows, self.weights = saved[base]
        self.divergence = self.divergence.replayed_from(before)
        self.step, self.windows = base, self.divergence.cursor_after(base, windows)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_trained_does_not_depend_on_what_was_saved(seed: int) -> None:
    draw = random.Random(seed)
    faults = {draw.randrange(900) for _ in range(8)}
    for _ in range(draw.randint(1, 3)):
        first = draw.randrange(900)
        faults |= set(range(first, first + draw.randint(3, 12)))
    ends = {
        Toy(frozenset(faults), frozenset(draw.sample(range(1, 700), count))).train(700)
        for count in (0, 1, 3, 30, 699)
    }
    assert len(ends) == 1
    (weights,) = ends
    assert weights is None or not faults & set(weights)


def test_a_fault_for_good_stops_the_run_soon() -> None:
    toy = Toy(frozenset(range(300, 10_000)), frozenset(range(50, 10_000, 50)))
    assert toy.train(5000) is None
    assert toy.windows < 300 + 3 * (5 + 100 + 50)


@pytest.mark.parametrize("name", RECORDED)
def test_no_loss_of_an_ordinary_training_is_a_spike(name: str) -> None:
    verdicts, _ = after(RECORDED[name])
    assert skipped(verdicts) == []


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("step", [40, 150, 500])
def test_a_leap_among_the_losses_of_a_training_is_found(name: str, step: int) -> None:
    losses = list(RECORDED[name])
    losses[step] += 8.0
    assert skipped(after(losses)[0]) == [step]
