"""Every job that is taken is answered, also when the model fails."""

from __future__ import annotations

from typing import NoReturn

import pytest

from llmtrain.generate.generator import TextGenerator
from llmtrain.generate.sampling import Sampling
from llmtrain.generate.text import TextRequest
from llmtrain.model.decoder import Decoder
from llmtrain.serve.metrics import Metrics
from llmtrain.serve.scheduler import ClosedError, Job, Scheduler, Update
from llmtrain.tokenizer import Tokenizer


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_model_that_fails_fails_all_jobs_and_takes_no_more(
    model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = TextGenerator(model, tokenizer, "fp32", 1)
    scheduler = Scheduler(generator, 8, Metrics(1))
    failures: list[str | None] = []
    refused: list[str] = []

    def job() -> Job:
        return Job(generator.prepare(TextRequest("a", Sampling(), 5)), deliver)

    def deliver(update: Update) -> None:
        failures.append(update.failure)
        try:
            scheduler.submit([job()])
        except ClosedError as error:
            refused.append(error.message)

    def step() -> NoReturn:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(generator, "step", step)
    scheduler.submit([job(), job(), job()])
    scheduler.start()
    scheduler.close(10.0)
    assert failures == ["the model failed: RuntimeError"] * 3
    why = "the model failed: RuntimeError; the server has to be started again"
    assert refused == [why] * 3
    assert scheduler.why_closed == why
