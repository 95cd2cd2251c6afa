"""Values of a profile as lines of YAML."""

from __future__ import annotations

import json as json_text
import re

_PLAIN_WORD = re.compile(r"[A-Za-z][\w-]*(:[\w-]+)*|\d+(\.\d+)?s", re.ASCII)
# YAML reads these as line ends, or refuses them.
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def yaml_scalar(value: object) -> str:
    """Return a value as YAML that parses to the same: a plain word if it stays text, else JSON."""
    from llmtrain.profile.yaml_text import parse_scalar

    if isinstance(value, str) and _PLAIN_WORD.fullmatch(value) and parse_scalar(value) == value:
        return value
    text = json_text.dumps(value, ensure_ascii=False)
    return _NOT_IN_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def commented(line: str, comment: str) -> str:
    return f"{line:<40}  # {' '.join(comment.split())}" if comment else line
