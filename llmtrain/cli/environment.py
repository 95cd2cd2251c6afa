"""Variables of the environment that begin like llmtrain's own and are none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llmtrain.files import LAUNCHED_VARIABLE

_PREFIX = "LLMTRAIN_"
_OWN = ("LLMTRAIN_CACHE_DIR", "LLMTRAIN_API_KEY", LAUNCHED_VARIABLE)
_OF_OTHERS = ("LLMTRAIN_TEST_", "LLMTRAIN_PROBE_")  # of the project's own tests and benchmarks


def unknown_variables(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield a warning for each variable `LLMTRAIN_…` that nothing reads.

    Those of a key (`LLMTRAIN_TRAIN__STEPS`) are checked where a profile is read.
    """
    if LAUNCHED_VARIABLE in environment:
        return  # the launcher has warned
    for name in environment:
        is_ours = name.startswith(_PREFIX) and not name.startswith(_OF_OTHERS)
        if is_ours and "__" not in name and name not in _OWN:
            yield f"the environment variable {name} is not used{_meant(name)}"


def _meant(name: str) -> str:
    from llmtrain.profile.load import did_you_mean, known_paths

    keys = [path.replace(".", "__").upper() for path in known_paths() if "." in path]
    close = did_you_mean(name.removeprefix(_PREFIX), ["CACHE_DIR", *keys])
    return f"; did you mean {_PREFIX}{close}?" if close else ""
