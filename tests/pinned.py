"""Settings under which no measurement decides how a run is computed.

A test that compares the weights or losses of runs whose measurements are not shared, because they
have caches or threads of their own, gives them these.
"""

from __future__ import annotations

PINNED: dict[str, str | bool] = {
    "device.precision": "fp32",
    "device.attention": "sdpa",
    "device.compile": False,
}


def pinned_options() -> list[str]:
    """Return `PINNED` as options of a command."""
    settings = (f"{name}={str(value).lower()}" for name, value in PINNED.items())
    return [word for setting in settings for word in ("--set", setting)]


def pinned_keywords() -> dict[str, str | bool]:
    """Return `PINNED` by the names that fixtures take: `device__precision`."""
    return {name.replace(".", "__"): value for name, value in PINNED.items()}
