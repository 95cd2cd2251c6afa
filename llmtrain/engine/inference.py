"""Load a trained model, and generate text with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.engine.open_model import open_model
from llmtrain.engine.plan_run import plan_inference
from llmtrain.generate.generator import TextGenerator
from llmtrain.generate.native.library import load_decode_step
from llmtrain.generate.sampling import Sampling
from llmtrain.generate.text import Piece, TextRequest, TextStream
from llmtrain.machine.probe import read_facts
from llmtrain.model.decoder import Decoder
from llmtrain.ops.precision import autocast_as
from llmtrain.plan.planner import InferencePlan
from llmtrain.profile.schema import DeviceSection
from llmtrain.progress import Note
from llmtrain.tokenizer import Tokenizer
from llmtrain.train.build import set_up_device
from llmtrain.train.distributed.world import World
from llmtrain.train.events import Observer
from llmtrain.train.model_weights import trained_model

_TEXTS_TOGETHER = 16  # of one call: each has a cache for the whole context


@dataclass(frozen=True, slots=True)
class Trained:
    """A model ready to use, and where it came from."""

    model: Decoder
    tokenizer: Tokenizer
    checkpoint: Path
    plan: InferencePlan
    record: dict[str, Any] | None  # of the run, if the checkpoint still lies in one

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context in which matrices are multiplied in the plan's precision."""
        return autocast_as(self.plan.precision.value, self.model.head_weight.device)


def load_trained(run: str, device: DeviceSection, observe: Observer) -> Trained:
    """Load the model that `run` names (see `open_model`), on the requested device."""
    opened = open_model(run, observe)
    plan = plan_inference(device, opened.shape)
    where = set_up_device(plan, World())
    model = trained_model(opened.shape, opened.weights, str(opened.path))
    return Trained(model.to(where).eval(), opened.tokenizer, opened.path, plan, opened.record)


def text_generator(
    trained: Trained, slots: int = 1, *, observe: Observer | None = None
) -> TextGenerator:
    """Return what continues up to `slots` texts together in the plan's precision.

    With `observe`, the step for single tokens is compiled if this machine has not done so before,
    which it is told; else it is used if it is there.
    """
    precision, plan = trained.plan.precision.value, trained.plan
    generator = TextGenerator(trained.model, trained.tokenizer, precision, slots)
    if precision != "bf16" or plan.device.value != "cpu":
        return generator
    announce = None if observe is None else lambda text: observe(Note(text))
    facts = read_facts(tries_gpus=False)
    loaded = load_decode_step(facts, announce, compiles=observe is not None)
    step = generator.use_faster_step() if loaded.value else loaded
    if observe is not None:
        observe(Note(f"single tokens: {step.reason}"))
    return generator


def generate_texts(
    trained: Trained,
    requests: Sequence[TextRequest],
    observe: Observer,
    check_stop: Callable[[], None],
    *,
    in_int8: bool = False,
) -> Iterator[tuple[int, Piece, TextStream]]:
    """Yield the pieces of each request's text, as they are sampled, with the request's index.

    Of a prompt that is longer than the context the end is read, which `observe` is told. `in_int8`:
    of weights that were rounded so (`llmtrain.engine.int8`).
    """
    slots = min(len(requests), _TEXTS_TOGETHER)
    if in_int8:
        generator = TextGenerator(
            trained.model, trained.tokenizer, trained.plan.precision.value, slots
        )
        generator.use_int8_step(trained.model)
    else:
        generator = text_generator(trained, slots)
    streams = [generator.prepare(request) for request in requests]
    longest = max((stream.prompt_tokens for stream in streams), default=0)
    if longest > generator.context:
        text = f"the prompt has {longest} tokens; the model reads the last {generator.context}"
        observe(Note(f"{text}, its context"))
    for found in generator.generate_all(streams):
        check_stop()
        yield found


def generate_text(
    trained: Trained,
    prompt: str,
    sampling: Sampling,
    max_tokens: int,
    check_stop: Callable[[], None],
) -> Iterator[str]:
    """Yield pieces of text that continue `prompt`, as they are sampled, in whole characters."""
    for piece in text_generator(trained).generate(TextRequest(prompt, sampling, max_tokens)):
        check_stop()
        if piece.text:
            yield piece.text
