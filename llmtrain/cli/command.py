"""Registering commands: each gets an Output, and the options -q, -v and --debug."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from llmtrain.cli.output import Output
from llmtrain.cli.streams import discard_stdout, unread_output_lost

Function = Callable[..., int | None]

_COMMON = {
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors and results.")],
    "verbose": Annotated[bool, typer.Option("--verbose", "-v", help="Print more.")],
    "debug": Annotated[bool, typer.Option("--debug", help="Show tracebacks.")],
}


def command(app: typer.Typer, name: str) -> Callable[[Function], Function]:
    """Register a function, whose first parameter is an Output, as the command `name` of `app`.

    It returns the exit code; None is 0.
    """

    def register(function: Function) -> Function:
        app.command(name)(_with_common_options(function))
        return function

    return register


def group(help_text: str) -> typer.Typer:
    """Return a group of commands that shows its help if no command is named."""
    app = typer.Typer(help=help_text, rich_markup_mode=None, add_completion=False)

    @app.callback(invoke_without_command=True)
    def show_help(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    return app


def _with_common_options(function: Function) -> Function:
    @functools.wraps(function)
    def run(*, quiet: bool, verbose: bool, debug: bool, **arguments: Any) -> int | None:
        code: int | None = 0
        try:
            code = function(Output(quiet, verbose, debug), **arguments)
        except BrokenPipeError:
            discard_stdout()  # the reader closed the pipe: it has what it wanted
        with unread_output_lost():
            sys.stdout.flush()
        return code

    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    common = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in _COMMON.items()
    ]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + common
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    del run.__wrapped__
    return run
