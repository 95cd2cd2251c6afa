"""Evaluation during training: the loss on held-out text, and sampled text."""

from __future__ import annotations

import math
import time
from dataclasses import astuple, replace

from llmtrain.data.batches.preferences import PreferenceReader
from llmtrain.eval.evaluate import LossSum, bits_per_byte, sum_loss
from llmtrain.eval.preferences import PreferenceLoss, sum_preferences
from llmtrain.generate.generator import TextGenerator
from llmtrain.generate.sampling import Sampling
from llmtrain.generate.text import TextRequest
from llmtrain.profile.schema import EvalSection
from llmtrain.tokenizer import Tokenizer
from llmtrain.train.checkpoint.saver import passes_multiple
from llmtrain.train.events import Evaluated
from llmtrain.train.loop import Run
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.signals import StopRequest
from llmtrain.train.validation import Validation

_SAMPLING = Sampling(temperature=0.8)


class Evaluator:
    """Evaluates on the same validation windows and samples from the same prompts every time.

    All ranks evaluate together; rank 0 samples.
    """

    def __init__(
        self,
        run: Run,
        options: EvalSection,
        validation: Validation,
        tokenizer: Tokenizer,
        stop: StopRequest,
    ) -> None:
        self._run = run
        self._options = options
        self._validation = validation
        self._reader = validation.reader
        self._tokenizer = tokenizer
        self._stop = stop
        self._evaluated_step = self._sampled_step = 0
        self.deadline_s = math.inf  # by the monotonic clock; evaluation and samples end early

    @property
    def windows(self) -> int:
        """The number of validation windows."""
        requested = max(1, self._options.tokens // self._run.context)
        return min(requested, self._reader.num_windows)

    @property
    def tokens(self) -> int:
        """The number of validation tokens that count in the loss."""
        return self._reader.count_targets(0, self.windows)

    def restore(self, directory: RunDirectory) -> None:
        """Read from the run directory which steps were evaluated and sampled last."""
        self._evaluated_step = self._sampled_step = 0
        if self._run.world.is_main and self._run.position.step > 0:
            evaluated = (line["step"] for line in directory.read_metrics() if "val_loss" in line)
            self._evaluated_step = max(evaluated, default=0)
            sampled = (line["step"] for line in directory.read_samples())
            self._sampled_step = max(sampled, default=0)

    def is_due(self, step: int, *, is_last: bool) -> bool:
        """Return whether to evaluate after `step`. Every rank has to call it."""
        every = self._options.every_steps
        if not is_last and not passes_multiple(step, self._run.steps_together, every):
            return False
        return self._run.all_reduce([step == self._evaluated_step])[0] == 0

    def sample_is_due(self, step: int, *, is_last: bool) -> bool:
        """Return whether to sample after `step`: on rank 0, with the others' parts of a model."""
        every = self._options.sample_every_steps
        if every is None:
            return False
        if not is_last and not passes_multiple(step, self._run.steps_together, every):
            return False
        if self._run.sharded is not None:
            return self._run.all_reduce([step == self._sampled_step])[0] == 0
        return self._run.world.is_main and step != self._sampled_step

    def validation_loss(self, windows: int | None = None) -> LossSum:
        """Return the loss over the first `windows` validation windows (default: all).

        The ranks share the windows and get the same sum.
        """
        world = self._run.world
        windows = min(windows or self.windows, self.windows)
        own = range(world.rank, windows, world.size)
        if isinstance(self._reader, PreferenceReader):
            return self._preference_loss(self._reader, own)
        # A rank without a window computes the last one, as ranks of a sharded model compute alike.
        read = (self._reader.read(i, 1) for i in own or range(windows - 1, windows))
        micro_batch, sharded = self._run.plan.micro_batch.value, self._run.sharded
        most = -(-windows // world.size)  # windows of a rank
        loss = sum_loss(
            self._run.model,
            ((inputs[0], targets[0]) for inputs, targets in read),
            micro_batch=micro_batch,
            autocast=self._run.autocast,
            check_stop=self._check_stop,
            is_time_over=self._is_time_over if sharded is None else self._is_time_over_for_any,
            forwards=0 if sharded is None else -(-most // micro_batch),
        )
        if sharded is not None:
            sharded.free()
        if world.size == 1:
            return loss
        nats, tokens = self._run.all_reduce([loss.nats, loss.tokens] if own else [0.0, 0.0])
        return LossSum(nats, int(tokens))

    def _preference_loss(self, reader: PreferenceReader, own: range) -> PreferenceLoss:
        """Return the loss over the pairs of all ranks' windows."""
        loss = sum_preferences(
            self._run.model,
            (reader.read(i, 1) for i in own),
            autocast=self._run.autocast,
            check_stop=self._check_stop,
            is_time_over=self._is_time_over,
        )
        if self._run.world.size == 1:
            return loss
        nats, pairs, margins, correct, chosen, tokens = self._run.all_reduce(astuple(loss))
        return PreferenceLoss(nats, int(pairs), margins, int(correct), chosen, int(tokens))

    def evaluated(self, step: int, loss: LossSum, best: float | None) -> Evaluated:
        """Return the evaluation of `step`, compared with the `best` loss of those before it."""
        self._evaluated_step = step
        mean, validation = loss.nats_per_token, self._validation
        is_best = math.isfinite(mean) and (best is None or mean < best)
        if isinstance(loss, PreferenceLoss):
            chosen = loss.chosen_nats / loss.chosen_tokens
            bpb = bits_per_byte(chosen, validation.tokens, validation.text_bytes)
            return Evaluated(step, mean, bpb, is_best, loss.margin, loss.accuracy)
        bpb = bits_per_byte(mean, validation.tokens, validation.text_bytes)
        return Evaluated(step, mean, bpb, is_best)

    def sample(self, prompt: str, seed: int) -> str:
        """Return a continuation of `prompt`, or in a conversation the answer to it."""
        run, sampled, chat = self._run, "", self._validation.chat
        request = TextRequest(
            prompt if chat is None else tuple(chat.ids[prompt]),
            replace(_SAMPLING, seed=seed),
            self._options.sample_tokens,
            ends=frozenset() if chat is None else frozenset(chat.stop_ids),
        )
        generator = TextGenerator(run.model, self._tokenizer, run.plan.precision.value)
        for piece in generator.generate(request):
            self._check_stop()
            sampled += piece.text
            if self._is_time_over():
                break
        return sampled

    def sampled(self, step: int) -> None:
        """Record that the samples of `step` are complete."""
        self._sampled_step = step

    def _is_time_over(self) -> bool:
        return time.monotonic() > self.deadline_s

    def _is_time_over_for_any(self) -> bool:
        """Return whether the time is over on any rank: those of a sharded model end together."""
        if self.deadline_s == math.inf:
            return False
        return self._run.all_reduce([self._is_time_over()])[0] > 0

    def _check_stop(self) -> None:
        """Raise InterruptedRunError after a stop signal; several ranks stop after the step."""
        if self._run.world.size == 1:
            self._stop.check()
