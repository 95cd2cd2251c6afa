"""`llmtrain chat`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmtrain.cli import options
from llmtrain.cli.output import Output
from llmtrain.errors import DataError, UsageError

if TYPE_CHECKING:
    from llmtrain.cli.chat_screen import ChatScreen
    from llmtrain.engine.chat import Conversation
    from llmtrain.train.signals import StopRequest

_HELP = """\
/reset          forget the conversation
/system TEXT    forget it, and begin with this system message; without TEXT: with none
/save FILE      write the conversation as a line of JSON, as finetune reads it
/help           this list
/quit           end; so does Ctrl-D
A line that ends in \\ goes on in the next one. Ctrl-C stops an answer."""


def chat(
    output: Output,
    run: options.Run,
    system: Annotated[
        str | None, typer.Option("--system", help="A system message to begin with.")
    ] = None,
    max_tokens: Annotated[
        int, options.whole_number("--max-tokens", "The most tokens of an answer.", 1)
    ] = 1000,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: Annotated[
        int, options.whole_number("--seed", "Equal seeds and messages give equal answers.")
    ] = 0,
    device: options.Device = None,
    force_cpu: options.ForceCpu = False,
) -> None:
    """Talk to a model that was fine-tuned on conversations.

    Messages are read from the terminal, or from a pipe with one message a line.
    """
    from llmtrain.cli.chat_screen import ChatScreen
    from llmtrain.cli.progress import watching
    from llmtrain.engine.chat import Conversation
    from llmtrain.engine.inference import load_trained
    from llmtrain.engine.serve_model import can_chat, model_name
    from llmtrain.generate.sampling import Sampling

    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, seed)
    with watching(output) as observe:
        trained = load_trained(run, options.device_section(device, force_cpu), observe)
        if not can_chat(trained):
            raise UsageError(
                f"{model_name(trained)} was never taught to chat: it continues texts, "
                "and answers none",
                hint=f"llmtrain generate {run} --prompt 'Once upon a time', or teach it: "
                f"llmtrain finetune {run} --data conversations.jsonl",
            )
        conversation = Conversation.with_model(trained, sampling, max_tokens, observe)
    conversation.begin(system)
    screen = ChatScreen(output, model_name(trained))
    _talk(conversation, screen)


def _talk(conversation: Conversation, screen: ChatScreen) -> None:
    """Answer messages until there are no more."""
    screen.greet()
    while (message := screen.message()) is not None:
        command, _, argument = message.strip().partition(" ")
        if command in ("/quit", "/exit"):
            break
        try:
            if command.startswith("/"):
                _run_command(command, argument.strip(), conversation, screen)
            elif command:
                _answer(message, conversation, screen)
        except KeyboardInterrupt:  # before the answer began
            screen.note("stopped")


def _run_command(
    command: str, argument: str, conversation: Conversation, screen: ChatScreen
) -> None:
    """Carry out a line that begins with a slash."""
    if command == "/help":
        screen.note(_HELP)
    elif command == "/reset":
        first = conversation.messages[:1]
        system = first[0]["content"] if first and first[0]["role"] == "system" else None
        conversation.begin(system)
        screen.note("The conversation is forgotten.")
    elif command == "/system":
        conversation.begin(argument or None)
        said = "It begins with that system message." if argument else "There is none."
        screen.note(f"The conversation is forgotten. {said}")
    elif command == "/save" and argument:
        _save(Path(argument), conversation, screen)
    else:
        screen.note(f"There is no {command} like that.\n{_HELP}")


def _save(path: Path, conversation: Conversation, screen: ChatScreen) -> None:
    import json

    from llmtrain.files import write_text_atomically

    if path.exists():
        screen.note(f"{path} is there already; name another file.")
        return
    line = json.dumps({"messages": conversation.messages}, ensure_ascii=False)
    try:
        write_text_atomically(path, line + "\n")
    except OSError as error:
        screen.note(f"{path} cannot be written: {error.strerror or error}")
    else:
        screen.note(f"{len(conversation.messages)} messages are in {path}.")


def _answer(message: str, conversation: Conversation, screen: ChatScreen) -> None:
    """Show the answer to a message as it grows; Ctrl-C ends it."""
    from llmtrain.train.signals import stop_on_signals

    started_s, pieces = time.monotonic(), 0
    with stop_on_signals(always=("SIGINT",)) as stop:
        answer = conversation.ask(message)
        try:
            with screen.answer() as show:
                for piece in _until_stopped(answer, stop):
                    show(piece)
                    pieces += 1
        except DataError as error:
            screen.note(f"{error.message}; {error.hint}")
            return
        finally:
            answer.close()  # type: ignore[attr-defined]
    if stop.is_made and stop.signal_name != "SIGINT":
        stop.check()
    screen.finish(
        pieces / max(time.monotonic() - started_s, 1e-9),
        is_stopped=stop.is_made,
        forgotten=conversation.forgotten,
    )


def _until_stopped(pieces: Iterator[str], stop: StopRequest) -> Iterator[str]:
    for piece in pieces:
        yield piece
        if stop.is_made:
            return
