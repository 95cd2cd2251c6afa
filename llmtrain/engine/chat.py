"""A conversation with a model, which forgets its oldest exchanges when the context is full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from llmtrain.engine.inference import Trained, text_generator
from llmtrain.errors import DataError
from llmtrain.generate.generator import TextGenerator
from llmtrain.generate.sampling import Sampling
from llmtrain.generate.text import TextRequest
from llmtrain.tokenizer.chat_template import ChatTemplate
from llmtrain.train.events import Observer

# Of the context, kept free for an answer: less of it is the conversation so far.
_ROOM_FOR_ANSWER = 4


@dataclass(slots=True)
class Conversation:
    """Messages, and how they are answered.

    The beginning that the cache of the model has is not read again, so that an answer begins
    quickly however long the conversation is.
    """

    generator: TextGenerator
    template: ChatTemplate
    sampling: Sampling
    max_tokens: int
    messages: list[dict[str, str]] = field(default_factory=list)
    answered: int = 0  # each answer is sampled with a seed of its own
    forgotten: int = 0  # messages that the last answer was given without

    @classmethod
    def with_model(
        cls, trained: Trained, sampling: Sampling, max_tokens: int, observe: Observer
    ) -> Conversation:
        """Return an empty conversation. Raises DataError for a model without a chat template."""
        template = ChatTemplate.of(trained.tokenizer)
        generator = text_generator(trained, observe=observe)
        return cls(generator, template, sampling, max_tokens)

    def begin(self, system: str | None) -> None:
        """Begin anew, with a system message if there is one."""
        self.messages = [{"role": "system", "content": system}] if system else []
        self.forgotten = 0

    def ask(self, question: str) -> Iterator[str]:
        """Yield the pieces of the answer to `question`; both are added to the messages.

        Of an answer that the caller ends early, what was yielded is added. Raises DataError if the
        question alone does not fit the context; then nothing is added.
        """
        messages = [*self.messages, {"role": "user", "content": question}]
        prompt = self._fitting_prompt(messages)
        room = self.generator.context - len(prompt)
        request = TextRequest(
            prompt,
            replace(self.sampling, seed=self.sampling.seed + self.answered),
            min(self.max_tokens, room),
            ends=self.template.stop_ids,
        )
        self.answered += 1
        answer = ""
        try:
            for piece in self.generator.generate(request):
                answer += piece.text
                yield piece.text
        finally:
            self.messages = [*messages, {"role": "assistant", "content": answer}]

    def _fitting_prompt(self, messages: list[dict[str, str]]) -> tuple[int, ...]:
        """Return the ids of the newest exchanges that fit, with the system message."""
        context = self.generator.context
        most = context - context // _ROOM_FOR_ANSWER
        system = [each for each in messages[:1] if each["role"] == "system"]
        said = messages[len(system) :]
        for start in range(0, len(said), 2):  # a question and its answer
            kept = [*system, *said[start:]]
            ids = self.template.encode(kept, add_generation_prompt=True)
            is_question_alone = start + 1 == len(said)
            if len(ids) <= (context - 1 if is_question_alone else most):
                self.forgotten = start
                return tuple(ids)
        raise DataError(
            f"the message has {len(ids)} tokens with what is around it; "
            f"the model's context is {context}",
            hint="write a shorter one, or shorten /system",
        )
