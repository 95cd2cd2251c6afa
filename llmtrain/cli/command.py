"""Commands: each gets an Output, the options --json, -q, -v and --debug, and checked values."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperOption

from llmtrain.cli.environment import unknown_variables
from llmtrain.cli.output import Output
from llmtrain.cli.streams import discard_stdout, unread_output_lost
from llmtrain.errors import UsageError

if TYPE_CHECKING:
    from typer._click.core import Context
    from typer._click.formatting import HelpFormatter

Function = Callable[..., int | None]
_METAVARS: dict[Any, str] = {
    **dict.fromkeys((str, list[str]), "TEXT"),
    **dict.fromkeys((Path, list[Path]), "PATH"),
    **dict.fromkeys((int, float, list[float]), "NUMBER"),
}
_MAY_BE_EMPTY = {"--prompt"}
# As in `train`, whose modules import torch.
_RUN_FILE, _CHECKPOINTS, _MANIFEST = "run.yaml", "checkpoints", "manifest.json"

_COMMON = {
    "json": Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors and results.")],
    "verbose": Annotated[bool, typer.Option("--verbose", "-v", help="Print more.")],
    "debug": Annotated[bool, typer.Option("--debug", help="Show tracebacks.")],
}


class _Command(TyperCommand):
    """A command whose values are neither empty nor, where they are kept, other than UTF-8."""

    def get_params(self, ctx: Context) -> list[Any]:
        """Return the parameters, with words for people in place of Python's types."""
        parameters = super().get_params(ctx)
        for each in parameters:
            if isinstance(each, TyperOption) and each.metavar is None:
                each.metavar = _METAVARS.get(each.type_descriptor.annotation)
        return parameters

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write the arguments, without their types, and the options."""
        records: dict[str, list[tuple[str, str]]] = {"argument": [], "option": []}
        for each in self.get_params(ctx):
            if record := each.get_help_record(ctx):
                is_argument = each.param_type_name == "argument"
                name = record[0].partition(" <")[0] if is_argument else record[0]
                records[each.param_type_name].append((name, record[1]))
        for kind, rows in records.items():
            if rows:
                with formatter.section(f"{kind.capitalize()}s"):
                    formatter.write_dl(rows)

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse the arguments. Raises UsageError."""
        if ctx.resilient_parsing:  # the shell completes what is not finished
            return super().parse_args(ctx, args)
        values, *_ = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in self.get_params(ctx):
            value = values.get(parameter.name or "")
            for text in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(text, str) and isinstance(parameter, (TyperArgument, TyperOption)):
                    _require_usable(parameter, text)
        return super().parse_args(ctx, args)


def _require_usable(parameter: TyperArgument | TyperOption, text: str) -> None:
    """Raise UsageError if the value is empty, or is not UTF-8 and will be written to a file."""
    if isinstance(parameter, TyperArgument):
        name = (parameter.metavar or (parameter.name or "").upper()).strip("[].…")
    else:
        name = max(parameter.opts, key=len)
    if not text.strip() and name not in _MAY_BE_EMPTY:
        raise UsageError(
            f"{name} is empty", hint="if a shell variable was meant, see whether it is set"
        )
    is_path = parameter.type_descriptor.annotation is Path
    only_read = name == "--data" or (is_path and name != "--out")
    if not only_read and text.encode(errors="replace").decode() != text:
        raise UsageError(
            f"{name} {text} is not UTF-8", hint="name it in UTF-8; rename a file or directory first"
        )
    if name == "--out":
        _refuse_inside_checkpoint(Path(text))


def _refuse_inside_checkpoint(path: Path) -> None:
    """Raise UsageError if `path` is a checkpoint, or in one or beside a run's.

    What is written there damages the checkpoint or is taken for one.
    """
    for place in (path.absolute(), *path.absolute().parents):
        is_checkpoint = (place / _MANIFEST).is_file()
        if is_checkpoint or _holds_checkpoints(place):
            kind = "a checkpoint" if is_checkpoint else "the checkpoints of a run"
            raise UsageError(
                f"--out {path} is in {place}, {kind}",
                hint="another --out; nothing is written into a checkpoint",
            )


def _holds_checkpoints(place: Path) -> bool:
    return place.name == _CHECKPOINTS and (place.parent / _RUN_FILE).is_file()


def add_command(
    app: typer.Typer, name: str, function: Function, example: str, *, takes_json: bool = True
) -> None:
    """Add a function, whose first parameter is an Output, as the command `name` of `app`.

    It returns the exit code; None is 0. The help ends with the example.
    """
    common = {each: kind for each, kind in _COMMON.items() if takes_json or each != "json"}
    run = _with_options(function, common)
    app.command(name, cls=_Command, epilog=f"Example: {example}")(run)


def add_group(app: typer.Typer, name: str, help_text: str) -> typer.Typer:
    """Add a group of commands to `app`; it shows its help if no command is named."""
    group = typer.Typer(help=help_text, rich_markup_mode=None, add_completion=False)

    @group.callback(invoke_without_command=True)
    def show_help(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    app.add_typer(group, name=name)
    return group


def _with_options(function: Function, common: dict[str, Any]) -> Function:
    def run(**arguments: Any) -> int | None:
        code: int | None = 0
        try:
            output = Output(**{name: arguments.pop(name) for name in common})
            for text in unknown_variables(os.environ):
                output.warning(text)
            code = function(output, **arguments)
        except BrokenPipeError:
            discard_stdout()  # the reader closed the pipe: it has what it wanted
        with unread_output_lost():
            sys.stdout.flush()
        return code

    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in common.items()
    ]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + options
    run.__doc__ = function.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run
