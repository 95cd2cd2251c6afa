"""What a session's first steps show beside the forecast, and what the network costs."""

from __future__ import annotations

from llmtrain.machine.core_wait import CoreTimes, ran_share, read_core_times, waited_share
from llmtrain.plan.tensor_bytes import FP32_BYTES
from llmtrain.train.distributed.bandwidth import advice, measured_exchange
from llmtrain.train.logger import TrainLogger
from llmtrain.train.loop import Run
from llmtrain.train.pace import Pace
from llmtrain.train.rate_check import CHECKED_STEPS, rate_difference
from llmtrain.train.train_setup import TrainSetup


class FirstSteps:
    """Watches the first steps, and says once what they show."""

    def __init__(self, setup: TrainSetup, pace: Pace, logger: TrainLogger) -> None:
        self._setup, self._pace, self._logger = setup, pace, logger
        self._core_times: CoreTimes = {}  # after the first step

    def record(self, trained_steps: int) -> None:
        """Begin to count after the first step, which may compile with all cores."""
        if trained_steps == 1:
            self._core_times = read_core_times()

    def check(self, trained_steps: int, remaining_s: float | None) -> None:
        """Compare with the forecast, and time the network, once enough steps are done."""
        if trained_steps == CHECKED_STEPS:
            self._check_rate(remaining_s)
            self._check_network()

    @property
    def waited_share(self) -> float | None:
        """The share of their runnable time in which threads waited for a core; None: unknown."""
        return waited_share(self._core_times, read_core_times())

    def _check_rate(self, remaining_s: float | None) -> None:
        """Correct the forecast if the first steps are far from it."""
        setup, position = self._setup, self._setup.run.position
        forecast = setup.forecast_tokens_per_s
        if forecast is None or not self._pace.step_s or not setup.run.world.is_main:
            return
        has_time_limit = setup.horizon.time_s is not None
        difference = rate_difference(
            setup.profile.train.chosen_tokens_per_step / self._pace.step_s,
            forecast,
            after_step=position.step,
            ran_share=ran_share(self._core_times, read_core_times()),
            remaining_s=remaining_s,
            horizon_steps=position.horizon_steps if has_time_limit else None,
        )
        if difference is not None:
            self._logger.log_note(difference.line)
            setup.correct_forecast(difference)

    def _check_network(self) -> None:
        """Note where ranks on several machines spend much of a step on averaging gradients."""
        run = self._setup.run
        if not run.world.has_several_machines or not could_average_rarely(run):
            return
        size_bytes = FP32_BYTES * self._setup.workload.trained_parameters
        with self._logger.excluded():
            exchange = measured_exchange(run.world, run.device, size_bytes)
        note = advice(exchange, size_bytes, self._pace.step_s)
        if note is not None:
            self._logger.log_note(note)


def could_average_rarely(run: Run) -> bool:
    """Return True if the run averages gradients, and `train.sync_every` would be accepted."""
    averages_gradients = run.objective is not run.model
    return averages_gradients and run.adapter is None and not run.scaler.is_enabled()
