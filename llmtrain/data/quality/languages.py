"""Detect the language of a text with py3langid: offline, and with numpy alone."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib.util import find_spec

from llmtrain.errors import UsageError

UNDETERMINED = "und"  # ISO 639; mostly program code, and texts that are too short
_LEAST_CONFIDENCE = 0.1  # text without words has the probability 0.007 in each of 142 languages
_JUDGED_CHARACTERS = 4000  # of the beginning; more takes longer and is no more accurate


def has_language_detector() -> bool:
    """Return whether the library that detects languages is installed."""
    return find_spec("py3langid") is not None


class LanguageDetector:
    """A language detector. It takes about 100 MB of memory, and a millisecond a text."""

    def __init__(self) -> None:
        """Raise UsageError if the library is not installed."""
        if not has_language_detector():
            message = "detecting languages needs the package py3langid, which is not installed"
            raise UsageError(message, hint="pip install 'llmtrain[language]'")
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        self._identifier = LanguageIdentifier.from_model_file(
            MODEL_FILE, norm_probs=True, min_confidence=_LEAST_CONFIDENCE
        )

    def language(self, text: str) -> str:
        """Return the ISO 639 code of the likeliest language, or `und`."""
        label, _ = self._identifier.classify(text[:_JUDGED_CHARACTERS])
        return str(label)

    def require_known(self, languages: Sequence[str]) -> None:
        """Raise UsageError for a language that cannot be detected."""
        labels = sorted([*self._identifier.labels, UNDETERMINED])
        for each in languages:
            if each not in labels:
                close = difflib.get_close_matches(each, labels, n=1)
                raise UsageError(
                    f"data.filters.languages: {each} is not a language that can be detected; "
                    f"there are {', '.join(labels)}",
                    hint=f"did you mean {close[0]}?" if close else "codes are of ISO 639: en, de",
                )
