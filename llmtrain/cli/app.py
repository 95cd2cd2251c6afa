"""`llmtrain`: parse the command line, call the engine once, show the result.

Heavy imports happen inside commands.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Annotated, NoReturn

import typer

import llmtrain
from llmtrain.cli import profiles, runs
from llmtrain.cli.arguments import find_command, given_flags, without_options
from llmtrain.cli.chat import chat
from llmtrain.cli.cluster.plan import plan as plan_cluster
from llmtrain.cli.cluster.script import script
from llmtrain.cli.command import Function, add_command, add_group
from llmtrain.cli.data import cache
from llmtrain.cli.data.inspect import inspect as inspect_data
from llmtrain.cli.data.prepare import prepare
from llmtrain.cli.device.bench import bench
from llmtrain.cli.device.info import info
from llmtrain.cli.eval import evaluate
from llmtrain.cli.export import export
from llmtrain.cli.finetune import finetune
from llmtrain.cli.generate import generate
from llmtrain.cli.help_pages import show_help
from llmtrain.cli.memory.command import memory
from llmtrain.cli.output import Output
from llmtrain.cli.profiles_convert import convert
from llmtrain.cli.prove_resume import prove_resume
from llmtrain.cli.report_bug import report_bug
from llmtrain.cli.runs_compare import compare
from llmtrain.cli.runs_edit import rm, tag
from llmtrain.cli.runs_report import report
from llmtrain.cli.schema import schema
from llmtrain.cli.serve import serve
from llmtrain.cli.streams import discard_stdout, set_up_standard_streams, write_text
from llmtrain.cli.sweep import sweep
from llmtrain.cli.tokenizer.import_ import import_
from llmtrain.cli.tokenizer.inspect import inspect as inspect_tokenizer
from llmtrain.cli.tokenizer.text import decode, encode
from llmtrain.cli.tokenizer.train import train as train_tokenizer
from llmtrain.cli.train import train
from llmtrain.errors import AbortedError, DoesNotFitError, LlmtrainError, ThresholdError, UsageError
from llmtrain.files import LAUNCHED_VARIABLE, cache_directory

_RANK_0_REPORTS_FIRST_S = 5.0
_GROUPS = {
    "device": "What the machine has, and how it will be used.",
    "profiles": "Profiles: what can be trained, every value, and the schema of profile files.",
    "tokenizer": "Tokenizers: train, import, use and inspect them.",
    "data": "Text: inspect it, prepare it ahead of training, and manage the cache.",
    "data cache": "The cache: token shards, tokenizers, and downloads.",
    "runs": "Past runs.",
    "cluster": "Several machines: predictions and job files.",
}
# Each command with the arguments of the example that ends its help.
_COMMANDS: dict[str, tuple[Function, str]] = {
    "train": (train, "--data notes/ --time 30m"),
    "finetune": (finetune, "my-run --data chat.jsonl"),
    "eval": (evaluate, "my-run --data other.txt"),
    "generate": (generate, "my-run --prompt 'Once upon a time'"),
    "chat": (chat, "my-run"),
    "serve": (serve, "my-run --port 8000"),
    "export": (export, "my-run --format gguf --quant q8_0"),
    "device info": (info, "--profile cpu-small"),
    "device bench": (bench, "--profile cpu-small"),
    "memory": (memory, "--profile cpu-small"),
    "profiles list": (profiles.list_profiles, ""),
    "profiles show": (profiles.show, "cpu-small > my.yaml"),
    "profiles validate": (profiles.validate, "my.yaml"),
    "profiles convert": (convert, "old.yaml --out my.yaml"),
    "profiles schema": (profiles.schema, "> profile.schema.json"),
    "tokenizer train": (train_tokenizer, "--vocab-size 8192 --data notes/ --out tok"),
    "tokenizer import": (import_, "tokenizer.json --out tok"),
    "tokenizer encode": (encode, "--tokenizer tok notes.txt"),
    "tokenizer decode": (decode, "--tokenizer tok ids.txt"),
    "tokenizer inspect": (inspect_tokenizer, "--tokenizer tok --data notes/"),
    "data prepare": (prepare, "--profile cpu-small --data notes/"),
    "data inspect": (inspect_data, "--data notes/"),
    "data cache list": (cache.list_entries, ""),
    "data cache clear": (cache.clear, "--older-than 30d"),
    "runs list": (runs.list_runs, ""),
    "runs show": (runs.show, "my-run"),
    "runs compare": (compare, "my-run another-run"),
    "runs report": (report, "my-run --open"),
    "runs tag": (tag, "my-run baseline"),
    "runs rm": (rm, "my-run"),
    "runs verify": (runs.verify, "my-run"),
    "runs prove-resume": (prove_resume, "--profile cpu-tiny"),
    "cluster script": (script, "--for slurm --profile gpu-small --nodes 2 --assume cuda:8x80GiB"),
    "cluster plan": (
        plan_cluster,
        "--profile gpu-large --nodes 64 --assume cuda:8x80GiB --gpu H100 --network 400Gb",
    ),
    "report-bug": (report_bug, "my-run --out report.json"),
    "sweep": (sweep, "plan.yaml --time 5m"),
    "schema": (schema, "train"),
    "help": (show_help, "getting-started"),
}
_WITHOUT_JSON = {"profiles schema", "chat"}  # JSON and no document; a conversation

app = typer.Typer(
    help=llmtrain.__doc__,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Example: llmtrain train --data notes/ --time 30m",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _add_commands() -> None:
    groups = {"": app}
    for path, help_text in _GROUPS.items():
        parent, _, name = path.rpartition(" ")
        groups[path] = add_group(groups[parent], name, help_text)
    for path, (function, arguments) in _COMMANDS.items():
        parent, _, name = path.rpartition(" ")
        example = f"llmtrain {path} {arguments}".rstrip()
        add_command(groups[parent], name, function, example, takes_json=path not in _WITHOUT_JSON)


_add_commands()


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Train a language model from scratch on the machine you have."""
    if version:
        write_text(f"llmtrain {llmtrain.__version__}\n", flush=True)
    elif context.invoked_subcommand is None:
        write_text(f"{context.get_help()}\n", flush=True)


def main() -> NoReturn:
    """Run the command line of this process and exit with its code."""
    sys.excepthook = _report_unexpected
    set_up_standard_streams()
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:  # reported, where it was not a reader that went away
        discard_stdout()
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Return the exit code of a command line; errors are printed."""
    try:
        # Called through get_command, because a Typer sets an excepthook of its own.
        command = typer.main.get_command(app)
        _require_working_directory()
        return command(list(arguments), standalone_mode=False, prog_name="llmtrain") or 0
    except typer.TyperException as error:
        return _fail(UsageError(_complaint(error), hint=_help_command(arguments)), arguments)
    except typer.Abort:
        return _fail(AbortedError("interrupted", hint="run the same command again"), arguments)
    except LlmtrainError as error:
        return _fail(error, arguments)
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        discard_stdout()  # help whose reader has what it wanted, which is no failure
        return 0
    except OSError as error:
        return _fail(_os_failure(error), arguments)


def _os_failure(error: OSError) -> LlmtrainError:
    """Return the error of a disk or file system as one line."""
    where = f"{error.filename}: " if error.filename is not None else ""
    hint = "the same command with --debug shows where"
    cache = cache_directory()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some disk space; a saved run continues with --resume auto"
    elif error.errno == errno.EIO:
        hint = "the disk or the network behind it fails; a saved run continues with --resume auto"
    elif error.filename is not None and cache.is_relative_to(error.filename):
        where = f"the cache {cache} cannot be made: "
        hint = "LLMTRAIN_CACHE_DIR=DIRECTORY names another place for it"
    elif error.filename is not None and Path(error.filename).is_relative_to(cache):
        where = f"the cache {cache} cannot be used: {error.filename}: "
        hint = "LLMTRAIN_CACHE_DIR=DIRECTORY names another place for it"
    failure = LlmtrainError(f"{where}{error.strerror or error}", hint=hint)
    failure.__cause__ = error
    return failure


def _complaint(error: typer.TyperException) -> str:
    """Return what is wrong with an option, in the words that a profile's values have."""
    if isinstance(error, typer.BadParameter) and error.__cause__ is not None:
        from pydantic import ValidationError

        from llmtrain.profile.requirements import requirement

        if isinstance(error.__cause__, ValidationError):
            first = error.__cause__.errors()[0]
            given = "" if first["type"] == "value_error" else f", not {first['input']}"
            error.message = requirement(first) + given
    return error.format_message()


def _help_command(arguments: Sequence[str]) -> str:
    """Return the command that shows the options of the command that `arguments` name."""
    _, words = find_command(typer.main.get_command(app), arguments)
    return shlex.join(["llmtrain", *arguments[:words], "--help"])


def _require_working_directory() -> None:
    """Raise UsageError where it was deleted: libraries that torch loads need one."""
    try:
        Path.cwd()
    except OSError:
        raise UsageError(
            "the working directory was deleted", hint="cd to one that exists"
        ) from None


def _fail(error: LlmtrainError, arguments: Sequence[str]) -> int:
    """Print the error, on stdout too if the command was asked for JSON; return its exit code."""
    root = typer.main.get_command(app)
    flags = given_flags(root, arguments)
    if "debug" in flags:
        traceback.print_exception(error)
    if LAUNCHED_VARIABLE in os.environ:
        from llmtrain.train.distributed.failures import report_failure

        if report_failure(error):  # the launcher prints it
            return error.exit_code
    is_main = os.environ.get("RANK", "0") == "0" or "MASTER_ADDR" not in os.environ
    if not is_main:
        # Most failures are rank 0's too: it reports them, and torchrun then ends this rank.
        time.sleep(_RANK_0_REPORTS_FIRST_S)
    output = Output()
    alternatives = _alternative_commands(error, arguments)
    hint = next(iter(alternatives), None) or error.hint
    is_shown = isinstance(error, ThresholdError)  # it is in the document with the results
    if "json" in flags and is_main and not is_shown:
        from llmtrain.documents.base import present
        from llmtrain.documents.error import Error, Failure

        more = present(ways_out=list(alternatives))
        failure = Failure.of(error, code=error.exit_code, hint=hint or "", **more)
        with suppress(OSError):  # stdout may be what failed
            output.document(Error.of(error=failure))
    output.error(error.message, None if alternatives else hint)
    for command, outcome in alternatives.items():
        output.hint(f"{command}   # {outcome}")
    return error.exit_code


def _alternative_commands(error: LlmtrainError, arguments: Sequence[str]) -> dict[str, str]:
    """Return commands that would fit, each with its outcome."""
    alternatives = error.alternatives if isinstance(error, DoesNotFitError) else ()
    commands = {}
    for each in alternatives:
        remaining = without_options(arguments, each.in_place_of)
        commands[shlex.join(["llmtrain", *remaining, *each.options])] = each.outcome
    return commands


def _report_unexpected(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an unforeseen error in one line; with --debug the traceback too."""
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else kind.__name__
    failure = LlmtrainError(
        f"{kind.__name__}: {first_line}", hint="the same command with --debug shows where"
    )
    failure.__cause__ = error
    _fail(failure, sys.argv[1:])
