"""Everything that docs/reference/stability.md promises, as lines that are made from the code.

A line is one promise, so a difference between two versions of the text names what changed.
Sentences for people are no part of it.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from typer.core import TyperArgument

from llmtrain import SCHEMA_VERSION, errors
from llmtrain.documents.published import PUBLISHED, published_schema
from llmtrain.engine.evaluation import Evaluation
from llmtrain.engine.run_report import REPORT_FILE
from llmtrain.generate.sampling import Sampling
from llmtrain.plan.planned import Planned
from llmtrain.profile.load import known_paths
from llmtrain.profile.schema import Profile
from llmtrain.train.checkpoint.names import list_checkpoints
from llmtrain.train.events import Event, TrainResult
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.run_directory.saved_evaluation import EVALUATION_FILE
from llmtrain.train.run_directory.tags import TAGS_FILE
from llmtrain.train.run_directory.task_scores import TASKS_FILE
from tests.cli.test_help import COMMANDS

_OF_PEOPLE = {"description", "title", "$comment"}
_BY_OTHER_COMMANDS = {EVALUATION_FILE, TAGS_FILE, TASKS_FILE, REPORT_FILE}
_READ_BY_PROGRAMS = ("config.json", "manifest.json", "state.json")
FUNCTIONS = ("plan", "train", "evaluate", "generate", "bench.bench_cpu")
VALUES = (TrainResult, Evaluation, Planned, Sampling, *get_args(Event))


def surface(run: Path) -> str:
    """Return the lines of every section; `run` is a finished run."""
    parts = {
        "commands and flags": command_lines(),
        "exit codes": exit_code_lines(),
        "JSON": json_lines(),
        "a run directory": run_lines(run),
        "keys of a profile": profile_lines(),
        "llmtrain.engine": engine_lines(),
    }
    text = (
        "# Written by: python -m pytest tests/cli/test_public_surface.py --write-snapshots -n 0\n"
    )
    return text + "".join(
        f"\n# {title}\n" + "".join(f"{line}\n" for line in lines) for title, lines in parts.items()
    )


def command_lines() -> Iterator[str]:
    """Yield every command, and each of its arguments and options with its default."""
    for path, command in COMMANDS.items():
        name = f"llmtrain {path}".strip()
        yield name
        for parameter in command.params:
            yield f"{name} {_spelled(parameter)}{_default(parameter)}"


def _spelled(parameter: Any) -> str:
    if isinstance(parameter, TyperArgument):
        return f"<{parameter.name}>{' …' if parameter.nargs == -1 else ''}"
    names = " ".join([*sorted(parameter.opts), *sorted(parameter.secondary_opts)])
    value = "" if parameter.is_flag else " VALUE"
    return f"{names}{value}{' …' if parameter.multiple else ''}"


def _default(parameter: Any) -> str:
    if parameter.required:
        return ", required"
    default = parameter.default
    if default in (None, False, (), []) or callable(default):
        return ""
    return f" = {json.dumps(default, default=str, ensure_ascii=False)}"


def exit_code_lines() -> Iterator[str]:
    """Yield every exit code with its exception."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in kinds:
        if issubclass(kind, errors.LlmtrainError):
            yield f"{kind.exit_code} {kind.__name__}({kind.__bases__[0].__name__})"


def json_lines() -> Iterator[str]:
    """Yield the version of the documents, and a hash of each one's keys and types."""
    yield f"schema_version {SCHEMA_VERSION}"
    for name in PUBLISHED:
        schema = json.dumps(_without_sentences(published_schema(name)), sort_keys=True)
        yield f"{name} {hashlib.sha256(schema.encode()).hexdigest()[:16]}"


def _without_sentences(schema: Any, *, is_map_of_keys: bool = False) -> Any:
    if isinstance(schema, list):
        return [_without_sentences(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _without_sentences(value, is_map_of_keys=key in ("properties", "$defs"))
        for key, value in schema.items()
        if is_map_of_keys or key not in _OF_PEOPLE
    }


def run_lines(run: Path) -> Iterator[str]:
    """Yield the files of a run, and the keys of a checkpoint's JSON files."""
    checkpoints = RunDirectory(run).checkpoints
    found = {path.name for path in run.iterdir() if _is_shown(path) and path.is_file()}
    yield from sorted(found | _BY_OTHER_COMMANDS)  # in whatever order commands were used
    for path in sorted(list_checkpoints(checkpoints)[-1].iterdir()):
        name = f"{checkpoints.name}/step-N/{path.name}"
        yield name
        if path.name in _READ_BY_PROGRAMS:
            yield from (f"{name} {key}" for key in sorted(json.loads(path.read_text("utf-8"))))


def _is_shown(path: Path) -> bool:
    return not path.name.startswith(".")


def profile_lines() -> Iterator[str]:
    """Yield every key of a profile with its default."""
    values = Profile().model_dump(mode="json")
    for path in known_paths():
        value: Any = values
        for word in path.split("."):
            value = value[word]
        yield f"{path} = {json.dumps(value, ensure_ascii=False)}"


def engine_lines() -> Iterator[str]:
    """Yield the functions with their signatures, and the attributes of what they return."""
    for name in FUNCTIONS:
        module, _, function = f"llmtrain.engine.{name}".rpartition(".")
        yield f"engine.{name}{signature(getattr(importlib.import_module(module), function))}"
    for kind in VALUES:
        for field in fields(kind):
            yield f"{kind.__module__}.{kind.__name__}.{field.name}: {field.type}"


def signature(function: Callable[..., Any]) -> str:
    """Return a signature without the address of a default that is a function."""
    as_written = inspect.signature(function)
    parameters = [
        each.replace(default=...)
        if callable(each.default) and each.default is not each.empty
        else each
        for each in as_written.parameters.values()
    ]
    text = str(as_written.replace(parameters=parameters))
    return re.sub(r": '(.*?)'|-> '(.*?)'", _unquoted, text).replace("Ellipsis", "…")


def _unquoted(annotation: re.Match[str]) -> str:
    return f": {annotation[1]}" if annotation[1] else f"-> {annotation[2]}"
