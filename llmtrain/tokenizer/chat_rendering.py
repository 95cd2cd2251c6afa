"""Rendering of chat templates, which come with models of others, in jinja2's sandbox.

The environment is that of transformers' `apply_chat_template`, except that there is no
`strftime_now`: templates with a date then use a fixed one, so that a conversation has the same
tokens every day. Repetition of strings, powers and the size of the output are limited.

`{% generation %}` blocks hold what the assistant writes. They are rendered between two marks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmtrain.errors import DataError

Message = Mapping[str, Any]

# Noncharacters, which are in no text that is meant for interchange.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
_MOST_CHARACTERS = 1 << 24
_LONGEST_PRODUCT = 1 << 12
_PROBLEMS = (
    *(jinja2.TemplateError, TypeError, ValueError, AttributeError, LookupError),
    *(ArithmeticError, RecursionError, MemoryError),
)


class _Generation(Extension):
    """The tag `{% generation %}` … `{% endgeneration %}`."""

    tags = {"generation"}  # noqa: RUF012  # the base class declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the call that renders the block between the marks."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marks: list[nodes.Expr] = [nodes.Name("_marks", "load")]
        call = self.call_method("_between_marks", marks)
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _between_marks(self, marks: str, caller: Callable[[], str]) -> str:
        return marks[0] + caller() + marks[1] if marks else caller()


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox, without operations whose result is far larger than their operands."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Return a product; raise SecurityError for a long one of a string, and for powers."""
        if operator == "*":
            both = (left, right)
            sizes = [len(each) if isinstance(each, Sequence) else abs(each) for each in both]
            is_short = math.prod(sizes) <= _LONGEST_PRODUCT
            if is_short or not any(isinstance(each, Sequence) for each in both):
                return left * right
        raise jinja2.exceptions.SecurityError(f"{operator} makes too large a value")


class Renderer:
    """A compiled chat template."""

    def __init__(self, template: str, variables: Mapping[str, str]) -> None:
        """Compile `template`, for which `variables` are defined. Raises DataError."""
        environment = _Sandbox(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        try:
            parsed = environment.parse(template)
            self._template = environment.from_string(template)
        except (jinja2.TemplateError, RecursionError) as error:
            raise DataError(f"it is not a chat template: {str(error)[:200]}") from None
        self._variables = dict(variables)
        self.has_generation = any(
            isinstance(block.call, nodes.Call)
            and isinstance(block.call.node, nodes.ExtensionAttribute)
            and block.call.node.name == "_between_marks"
            for block in parsed.find_all(nodes.CallBlock)
        )

    def render(
        self, messages: Sequence[Message], marks: str, *, add_generation_prompt: bool
    ) -> str:
        """Return the text of `messages`, generated blocks between the first two `marks`.

        No mark occurs in the messages or in the template. Raises DataError.
        """
        blocks, size = [], 0
        try:
            for block in self._template.generate(
                self._variables,
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                _marks=marks,
            ):
                blocks.append(block)
                size += len(block)
                if size > _MOST_CHARACTERS:
                    raise ValueError(f"it writes more than {_MOST_CHARACTERS} characters")
        except _PROBLEMS as error:
            raise DataError(
                f"the chat template refuses the conversation: {str(error)[:200]}"
            ) from None
        return "".join(blocks)


def unused_marks(texts: Iterable[str], count: int) -> str:
    """Return `count` characters that occur in none of the texts. Raises DataError."""
    used = {mark for text in texts for mark in _MARKS if mark in text}
    free = [mark for mark in _MARKS if mark not in used][:count]
    if len(free) < count:
        raise DataError("the conversation has every noncharacter from U+FDD0 to U+FDEF")
    return "".join(free)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """Return JSON without HTML's escapes, as transformers has it."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
