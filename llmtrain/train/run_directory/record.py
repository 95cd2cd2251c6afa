"""run.yaml: request, decisions and result of a run; validated when read, as untrusted input."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmtrain.errors import UsageError
from llmtrain.files import write_text_atomically
from llmtrain.profile.requirements import requirement
from llmtrain.profile.yaml_text import LARGEST_BYTES, dump_document, parse_document
from llmtrain.train.checkpoint.names import is_checkpoint_name, step_of
from llmtrain.untrusted import is_unreached, problem_of, read_bytes, unreadable

_FEW_SESSIONS = 3


class _Part(BaseModel):
    """A part of run.yaml; unknown fields are allowed."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


# Without control characters, which a terminal would interpret.
_Shown = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]


class _Profile(_Part):
    """The displayed part of the profile; callers who need all of it validate it."""

    name: _Shown = ""


class _Choice(_Part):
    """A decision of the plan."""

    value: _Shown | int | float | bool | None
    reason: _Shown


class _Range(_Part):
    """The token range of a source with a weight."""

    first_token: Annotated[int, Field(ge=0)]
    tokens: Annotated[int, Field(ge=1)]


class _Data(_Part):
    """The run's data. `key` names a directory of the cache."""

    key: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    corpus_sha256: str | None = None
    sources: list[Any] = []
    mixture: list[_Range] = []


class _InitFrom(_Part):
    """The model that the run continues."""

    spec: str
    path: str
    sha256: dict[str, str]
    parameters: int
    vocab_size: int


class _Result(_Part):
    """The result of the last session."""

    stopped: Annotated[str, Field(pattern=r"^[a-z]{1,20}$")]
    checkpoint: str | None = None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class _Ranks(_Part):
    """The processes that were launched for a session."""

    by: _Shown | None
    processes: Annotated[int, Field(ge=1)]
    of_machines: list[int] | None
    backend: _Shown


class _Session(_Part):
    """One training from a start to an end."""

    ranks: _Ranks | None = None


class _Figure(_Part):
    """A number forecast before the run."""

    value: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Record(_Part):
    """The parts of run.yaml that are read again; only the profile is required."""

    profile: _Profile
    origins: dict[str, str] = {}
    plan: dict[str, _Choice] = {}
    data: _Data | None = None
    init_from: _InitFrom | None = None
    sessions: list[_Session | str | float | None] = []  # what is no section is passed over
    machine: dict[str, Any] = {}
    peak_flops: Annotated[float, Field(ge=0)] | None = None
    result: _Result | None = None
    forecast: dict[str, _Figure | None] | None = None


def write_run_file(path: Path, record: Mapping[str, Any]) -> None:
    """Write `record` to `path`; if it is too long to be read, with the last few sessions only.

    Raises UsageError if it still is too long.
    """
    try:
        text = dump_document(record, str(path))
    except UsageError:
        few = {"sessions": record.get("sessions", [])[-_FEW_SESSIONS:]}
        text = dump_document({**record, **few}, str(path))
    write_text_atomically(path, text)


def saved_step(record: Mapping[str, Any]) -> int | None:
    """Return the newest step that a record says was saved; None if it says of none."""
    sessions = [each for each in record.get("sessions") or [] if isinstance(each, Mapping)]
    named = [each.get(name) for each in sessions for name in ("from_step", "saved_step")]
    steps = [step for step in named if isinstance(step, int)]
    result = record.get("result")
    checkpoint = Path(str(result.get("checkpoint"))) if isinstance(result, Mapping) else Path()
    if is_checkpoint_name(checkpoint):
        steps.append(step_of(checkpoint))
    return max(steps, default=0) or None


def read_run_file(path: Path) -> dict[str, Any]:
    """Read and validate `path`; of the profile only the name is validated.

    Raises UsageError, and LlmtrainError where permissions or the disk keep it from being read.
    """
    try:
        text = read_bytes(path, LARGEST_BYTES).decode()
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and is_unreached(error):
            raise unreadable(path, error) from error
        raise UsageError(f"{path} cannot be read: {problem_of(error)}") from None
    record = parse_document(text, str(path))
    if isinstance(record, dict) and "sittings" in record:  # schema_version 1
        record.setdefault("sessions", record.pop("sittings"))
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise UsageError(
            f"{path} is not the record of a run: {where}{requirement(first)}"
        ) from None
    plain: dict[str, Any] = record
    return plain


def data_key(record: Mapping[str, Any], origin: str) -> str:
    """Return the cache key of the run's shards. Raises UsageError if run.yaml has none."""
    data = record.get("data")
    if data is None:
        raise UsageError(f"{origin} does not record the data of the run")
    return str(data["key"])


def data_ranges(record: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return first token and number of tokens of each source; empty without weights."""
    mixture = (record.get("data") or {}).get("mixture", [])
    return [(source["first_token"], source["tokens"]) for source in mixture]
