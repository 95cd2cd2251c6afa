"""What helps to find a bug in a run, without anything of the user's text, names or paths.

Only what is known to be harmless is taken: numbers, true and false, words that a profile's schema
lists as choices, and what llmtrain itself says of the plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from llmtrain.machine.facts import Facts
from llmtrain.machine.probe import read_facts
from llmtrain.profile.schema import Profile
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.train.run_directory.find import find_run
from llmtrain.untrusted import read_last_objects

LEFT_OUT = (
    "text, samples and prompts, and names and paths of files, runs, tokenizers and models; "
    "in a profile each value that is neither a number nor one of the words that its key allows"
)
_LINES = 40  # of metrics.jsonl, from its end
_RECORDED = ("versions", "plan", "predicted", "forecast", "peak_flops", "machine")
_OF_DATA = ("train_tokens", "validation_tokens", "leakage")
_OF_SESSION = ("begun", "from_step", "numerics", "ranks")
_OF_RESULT = ("stopped",)  # beside its numbers


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run without what is the user's own."""

    llmtrain: str
    recorded: Mapping[str, Any]  # of run.yaml: versions, plan, prediction, machine
    profile: Mapping[str, Any]
    data: Mapping[str, Any]
    sessions: list[dict[str, Any]]
    result: Mapping[str, Any]
    metrics: list[dict[str, float]]  # the newest lines, oldest first


@dataclass(frozen=True, slots=True)
class BugReport:
    """The machine, and a run if one is concerned."""

    facts: Facts
    run: RunFacts | None


def bug_report(run: str | None) -> BugReport:
    """Collect what a report needs. Raises UsageError for an unknown run."""
    return BugReport(read_facts(), None if run is None else _facts_of(find_run(run)))


def _facts_of(run: RunDirectory) -> RunFacts:
    record = run.read_record()
    data = record.get("data") or {}
    result = record.get("result") or {}
    schema = Profile.model_json_schema()
    lines = islice(read_last_objects(run.metrics), _LINES)
    return RunFacts(
        llmtrain=str(record.get("llmtrain", "")),
        recorded=_only(record, _RECORDED),
        profile=_harmless(record.get("profile") or {}, schema, schema.get("$defs", {})),
        data={
            **_only(data, _OF_DATA),
            "source_kinds": [str(each.get("kind")) for each in data.get("sources") or ()],
        },
        sessions=[
            _only(each, _OF_SESSION)
            for each in record.get("sessions") or ()
            if isinstance(each, Mapping)
        ],
        result={**_numbers(result), **_only(result, _OF_RESULT)},
        metrics=[_numbers(line) for line in lines][::-1],
    )


def _only(record: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: record[name] for name in names if name in record}


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in record.items() if isinstance(value, (int, float))}


def _harmless(
    values: Mapping[str, Any], schema: Mapping[str, Any], definitions: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the numbers and the listed words of a section, and of the sections within."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        described = (schema.get("properties") or {}).get(name, {})
        alternatives = list(_alternatives(described, definitions))
        if isinstance(value, Mapping):
            section = next((each for each in alternatives if "properties" in each), {})
            kept[name] = _harmless(value, section, definitions)
        elif _is_number(value) or any(value in _words(each) for each in alternatives):
            kept[name] = value
    return kept


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float))


def _alternatives(
    schema: Mapping[str, Any], definitions: Mapping[str, Any]
) -> Iterator[Mapping[str, Any]]:
    """Yield the schemas that a value may match, with references resolved."""
    if "$ref" in schema:
        yield from _alternatives(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    for each in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        yield from _alternatives(each, definitions)
    yield schema


def _words(schema: Mapping[str, Any]) -> tuple[Any, ...]:
    constant = (schema["const"],) if "const" in schema else ()
    return (*schema.get("enum", ()), *constant)
