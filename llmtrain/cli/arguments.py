"""The command line as its command parses it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from typer import Context
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

if TYPE_CHECKING:
    from typer._click.core import Command  # what `typer.main.get_command` returns


def find_command(root: Command, arguments: Sequence[str]) -> tuple[Command, int]:
    """Return the command that `arguments` name, and how many of them are its name."""
    command, count = root, 0
    for argument in arguments:
        if not isinstance(command, TyperGroup) or argument not in command.commands:
            break
        command, count = command.commands[argument], count + 1
    return command, count


def given_flags(root: Command, arguments: Sequence[str]) -> set[str]:
    """Return the flags, as in `{"json", "debug"}`, that the command finds among `arguments`.

    `--json` as the value of another option or after `--` is no flag. Arguments that the command
    would refuse do not hide a flag.
    """
    command, count = find_command(root, arguments)
    if not isinstance(command, TyperCommand):
        return set()
    context = Context(command, resilient_parsing=True)
    context.ignore_unknown_options = True
    remaining = list(arguments[count:])
    while remaining:
        try:
            values, *_ = command.make_parser(context).parse_args(args=list(remaining))
        except TyperException:  # the last option lacks its value, or a flag was given one
            remaining.pop()
        else:
            return {name for name, value in values.items() if value is True}
    return set()


def without_options(arguments: Sequence[str], names: Collection[str]) -> Iterator[str]:
    """Yield the arguments except options of these names and their values, one argument each."""
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, _ = argument.partition("=")
        if name not in names:
            yield argument
        elif not equals:
            next(remaining, None)
