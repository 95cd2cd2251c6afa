"""`llmtrain`: parse, call the engine once, render. Heavy imports happen inside commands."""

from __future__ import annotations

import errno
import os
import shlex
import sys
import time
import traceback
from collections.abc import Collection, Iterator, Sequence
from types import TracebackType
from typing import Annotated, NoReturn

import typer
from typer.core import TyperGroup

import llmtrain
from llmtrain.cli import data, device, generate, profiles, runs, schema, tokenizer, train
from llmtrain.cli import eval as eval_command
from llmtrain.cli.memory import command as memory
from llmtrain.cli.output import Output
from llmtrain.cli.streams import hold_standard_streams
from llmtrain.errors import AbortedError, DoesNotFitError, LlmtrainError, ThresholdError, UsageError
from llmtrain.files import LAUNCHED_VARIABLE
from llmtrain.machine.allocator import restart_without_thread_cache

_RANK_0_SPEAKS_FIRST_S = 5.0

app = typer.Typer(
    help=llmtrain.__doc__,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for _commands in (
    *(train, eval_command, generate, device, memory, profiles, tokenizer, data, runs, schema),
):
    _commands.register(app)


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
    if sys.argv[1:2] == ["train"]:
        restart_without_thread_cache()
    sys.excepthook = _explain_unexpected
    hold_standard_streams()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """The exit code of a command line; errors are already told."""
    try:
        # Called through get_command, because a Typer sets an excepthook of its own.
        command = typer.main.get_command(app)
        return command(list(arguments), standalone_mode=False, prog_name="llmtrain") or 0
    except typer.TyperException as error:
        return _fail(UsageError(error.format_message()), arguments)
    except typer.Abort:
        return _fail(AbortedError("interrupted", hint="run the same command again"), arguments)
    except LlmtrainError as error:
        return _fail(error, arguments)
    except OSError as error:
        return _fail(_refused_by_the_system(error), arguments)


def _refused_by_the_system(error: OSError) -> LlmtrainError:
    """What a disk or a file system refused, in a line. What was saved before is whole."""
    where = f"{error.filename}: " if error.filename is not None else ""
    hint = "the same command with --debug shows where"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "make room on the disk; a run that was saved goes on with --resume auto"
    failure = LlmtrainError(f"{where}{error.strerror or error}", hint=hint)
    failure.__cause__ = error
    return failure


def _fail(error: LlmtrainError, arguments: Sequence[str]) -> int:
    """The failure is told, on stdout too where a document is expected; returns its exit code."""
    if "--debug" in arguments:
        traceback.print_exception(error)
    if LAUNCHED_VARIABLE in os.environ and _launcher_tells(error):
        return error.exit_code
    is_main = os.environ.get("RANK", "0") == "0"
    if not is_main:
        # Most failures are rank 0's too: it tells them, and torchrun then ends this rank.
        time.sleep(_RANK_0_SPEAKS_FIRST_S)
    output = Output()
    ways = _ways_out(error, arguments)
    hint = next(iter(ways), None) or error.hint or f"{_command_path(arguments)} --help"
    is_shown = isinstance(error, ThresholdError)  # the document says it, with all results
    if "--json" in arguments and is_main and not is_shown:
        failure = {"code": error.exit_code, "message": error.message, "hint": hint}
        output.document({"error": failure | ({"ways_out": list(ways)} if ways else {})})
    output.error(error.message, None if ways else hint)
    for command, outcome in ways.items():
        output.hint(f"{command}   # {outcome}")
    return error.exit_code


def _ways_out(error: LlmtrainError, arguments: Sequence[str]) -> dict[str, str]:
    """Commands that would work where this one did not, and what comes of each."""
    found = error.ways_out if isinstance(error, DoesNotFitError) else ()
    commands = {}
    for way in found:
        kept = _without(arguments, way.in_place_of)
        commands[shlex.join(["llmtrain", *kept, *way.options])] = way.outcome
    return commands


def _without(arguments: Sequence[str], names: Collection[str]) -> Iterator[str]:
    """The arguments but for options of these names, whose values are one argument each."""
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, _ = argument.partition("=")
        if name not in names:
            yield argument
        elif not equals:
            next(remaining, None)


def _command_path(arguments: Sequence[str]) -> str:
    """`llmtrain` and the words of `arguments` that name a command."""
    words, command = ["llmtrain"], typer.main.get_command(app)
    for argument in arguments:
        if not isinstance(command, TyperGroup) or argument not in command.commands:
            break
        command = command.commands[argument]
        words.append(argument)
    return " ".join(words)


def _launcher_tells(error: LlmtrainError) -> bool:
    from llmtrain.train.distributed.failures import report_failure

    return report_failure(error)


def _explain_unexpected(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A failure that nobody foresaw, in one line; with --debug the traceback too."""
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else kind.__name__
    failure = LlmtrainError(
        f"{kind.__name__}: {first_line}", hint="the same command with --debug shows where"
    )
    failure.__cause__ = error
    _fail(failure, sys.argv[1:])
