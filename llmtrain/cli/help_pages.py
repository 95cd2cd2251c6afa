"""`llmtrain help`."""

from __future__ import annotations

from typing import Annotated

import typer

from llmtrain.cli import completion
from llmtrain.cli.output import Output
from llmtrain.cli.topics import pages, readable, title_of
from llmtrain.errors import UsageError


def show_help(
    output: Output,
    topic: Annotated[
        str | None,
        typer.Argument(
            metavar="TOPIC",
            help="A page, such as data or getting-started.",
            autocompletion=completion.topic_names,
        ),
    ] = None,
) -> None:
    """Show a page of the documentation; without a topic, list the pages.

    The options of a command are shown by `llmtrain COMMAND --help`.
    """
    from llmtrain.documents.help import Help
    from llmtrain.profile.load import did_you_mean

    topics = pages()
    listed = [{"name": name, "title": title_of(path)} for name, path in topics.items()]
    if topic is None:
        output.answer(Help.of(topics=listed), (f"{t['name']:<24}{t['title']}" for t in listed))
        return
    name = topic.replace("_", "-")
    if name not in topics:
        close = did_you_mean(name, topics)
        hint = f"llmtrain help {close}" if close else "llmtrain help"
        raise UsageError(
            f"there is no page {topic!r}", hint=f"{hint}; of a command: llmtrain COMMAND --help"
        )
    text = readable(topics[name], topics)
    if output.json or not output.stdout.is_terminal:
        output.answer(Help.of(topics=listed, text=text), text.rstrip().splitlines())
        return
    from rich.markdown import Markdown

    output.show(Markdown(text))
