"""Words that a user attaches to a run, in a file beside run.yaml, which training rewrites."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from llmtrain.errors import UsageError
from llmtrain.files import write_text_atomically
from llmtrain.profile.schema import NAME_PATTERN
from llmtrain.train.run_directory.directory import RunDirectory
from llmtrain.untrusted import problem_of, read_json

TAGS_FILE = "tags.json"
_MOST_TAGS = 100


def read_tags(run: RunDirectory) -> list[str]:
    """Return the run's tags, sorted. Raises UsageError for a file that is not a list of them."""
    path = run.path / TAGS_FILE
    try:
        found = read_json(path)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {problem_of(error)}") from None
    if not isinstance(found, list) or not all(isinstance(tag, str) for tag in found):
        raise UsageError(f"{path} is not a list of tags", hint="remove it")
    return [_checked(tag) for tag in sorted(set(found))]


def change_tags(run: RunDirectory, add: Sequence[str], remove: Sequence[str]) -> list[str]:
    """Add and remove tags; return those that the run has then. Raises UsageError."""
    before = read_tags(run)
    if missing := sorted(set(remove) - set(before)):
        raise UsageError(
            f"{run.path} has no tag {missing[0]}", hint=f"its tags: {', '.join(before) or 'none'}"
        )
    after = sorted({*before, *map(_checked, add)} - set(remove))
    if len(after) > _MOST_TAGS:
        raise UsageError(f"{run.path} would have {len(after)} tags, and the limit is {_MOST_TAGS}")
    if after != before:
        write_text_atomically(run.path / TAGS_FILE, json.dumps(after) + "\n")
    return after


def _checked(tag: str) -> str:
    if not re.fullmatch(NAME_PATTERN, tag):
        raise UsageError(
            f"{tag[:80]!r} is not a tag: letters, digits, dots, - and _, at most 64, "
            "a letter or digit first",
            hint="llmtrain runs tag RUN baseline",
        )
    return tag
