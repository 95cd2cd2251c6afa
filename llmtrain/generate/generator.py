"""Continue texts with a trained model, several at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from llmtrain.choice import Choice, Precision
from llmtrain.generate.batch import Batch
from llmtrain.generate.cached_decoder import CachedDecoder
from llmtrain.generate.step_choice import choose_step
from llmtrain.generate.text import Piece, TextRequest, TextStream
from llmtrain.model.decoder import Decoder
from llmtrain.ops.precision import half_dtype
from llmtrain.tokenizer import Tokenizer
from llmtrain.tokenizer.healing import Spellings


class TextGenerator:
    """A model that continues up to `slots` texts together.

    It keeps the weights that the model has when this is made.
    """

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer, precision: Precision, slots: int = 1
    ) -> None:
        dtype = half_dtype(precision) or torch.float32
        self.tokenizer = tokenizer
        self.context = model.shape.context
        self.slots = slots
        self._decoder = CachedDecoder(model, dtype, slots)
        self._batch = Batch(self._decoder, tokenizer.vocab_size)
        self._spellings = Spellings(tokenizer)
        self._streams: list[TextStream] = []

    def use_faster_step(self) -> Choice[bool]:
        """Compute single tokens by the compiled step, which has to be loaded, if it is faster.

        For a model in bf16 on a CPU, before the first text.
        """
        return choose_step(self._decoder)

    def use_int8_step(self, model: Decoder) -> None:
        """Compute single tokens by the compiled step with weights in int8: of the same model.

        The step has to be loaded. For a model in bf16 on a CPU, before the first text.
        """
        self._decoder.compute_in_int8(model)

    @property
    def longest_prompt_characters(self) -> int:
        """The most characters that the context can hold; texts of more need not be encoded."""
        return self.context * max(1, self._spellings.longest)

    @property
    def free(self) -> int:
        """The number of texts that can be started."""
        return self._batch.free

    @property
    def running(self) -> int:
        """The number of texts that are being continued."""
        return self._batch.running

    def prepare(self, request: TextRequest) -> TextStream:
        """Return the stream of a request, which nothing is computed for yet. Raises DataError."""
        return TextStream(request, self.tokenizer, self._spellings)

    def start(self, stream: TextStream) -> None:
        """Continue the stream from the next step on; a slot has to be free."""
        self._batch.add(stream.continuation)
        self._streams.append(stream)

    def cancel(self, stream: TextStream) -> None:
        """End a stream; its slot is free from the next step on."""
        self._batch.remove(stream.continuation)
        self._streams = [each for each in self._streams if each is not stream]

    def step(self) -> list[tuple[TextStream, Piece]]:
        """Sample the next token of every text; finished ones are removed. Raises LlmtrainError."""
        streams = {id(stream.continuation): stream for stream in self._streams}
        pieces = []
        for continuation, token in self._batch.step():
            stream = streams[id(continuation)]
            pieces.append((stream, stream.push(token)))
            if stream.finish is not None:
                self.cancel(stream)
        return pieces

    def generate(self, request: TextRequest) -> Iterator[Piece]:
        """Yield the pieces of one text as they are sampled; an empty one where nothing is new."""
        stream = self.prepare(request)
        self.start(stream)
        try:
            while stream.finish is None:
                for _, piece in self.step():
                    yield piece
        finally:
            self.cancel(stream)

    def generate_all(
        self, streams: Sequence[TextStream]
    ) -> Iterator[tuple[int, Piece, TextStream]]:
        """Yield the pieces of prepared streams, each with its index, as they are sampled.

        As many are continued together as there are slots.
        """
        index_of = {id(stream): index for index, stream in enumerate(streams)}
        waiting = list(reversed(streams))
        while waiting or self.running:
            while waiting and self.free:
                self.start(waiting.pop())
            for stream, piece in self.step():
                yield index_of[id(stream)], piece, stream
