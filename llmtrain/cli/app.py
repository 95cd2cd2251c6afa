"""`llmtrain`: parse, call the engine once, render. Heavy imports happen inside commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, NoReturn

import typer

import llmtrain
from llmtrain.cli import device, memory, profiles, runs, tokenizer, train, use
from llmtrain.cli.voice import Voice
from llmtrain.errors import LlmtrainError, UsageError
from llmtrain.files import OUTCOME_FILE_VARIABLE

app = typer.Typer(
    help=llmtrain.__doc__,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
train.register(app)
use.register(app)
device.register(app)
memory.register(app)
profiles.register(app)
tokenizer.register(app)
runs.register(app)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Train a language model from scratch on the machine you have."""
    if version:
        typer.echo(f"llmtrain {llmtrain.__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> NoReturn:
    """Runs the command line and exits with its code."""
    sys.excepthook = _explain_unexpected
    arguments = sys.argv[1:]
    code = run(arguments)
    _record_outcome(code)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """The exit code of a command line; errors are already told."""
    try:
        return app(list(arguments), standalone_mode=False, prog_name="llmtrain") or 0
    except typer.TyperException as error:
        hint = f"llmtrain {arguments[0]} --help" if arguments else "llmtrain --help"
        return _fail(UsageError(error.format_message(), hint=hint), arguments)
    except typer.Abort:
        return 130
    except LlmtrainError as error:
        if "--debug" in arguments:
            raise
        return _fail(error, arguments)
    except BrokenPipeError:
        # Whoever read the output has gone; what is left to write has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _fail(error: LlmtrainError, arguments: Sequence[str]) -> int:
    voice = Voice()
    if os.environ.get("RANK", "0") != "0":
        return error.exit_code  # rank 0 speaks for all
    if "--json" in arguments:
        failure = {"code": error.exit_code, "message": error.message, "hint": error.hint}
        voice.document({"error": failure})
    voice.error(error.message, error.hint)
    return error.exit_code


def _record_outcome(code: int) -> None:
    """The launcher of several ranks exits with rank 0's code, whatever its agent makes of it."""
    path = os.environ.get(OUTCOME_FILE_VARIABLE)
    if path and os.environ.get("RANK") == "0":
        Path(path).write_text(str(code), encoding="ascii")


def _explain_unexpected(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A failure that nobody foresaw, in one line; with --debug as Python shows it."""
    if "--debug" in sys.argv:
        sys.__excepthook__(kind, error, trace)
        return
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else kind.__name__
    failure = LlmtrainError(
        f"{kind.__name__}: {first_line}", hint="the same command with --debug shows where"
    )
    _fail(failure, sys.argv[1:])
