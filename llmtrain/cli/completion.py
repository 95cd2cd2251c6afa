"""What the shell completes: names of profiles, runs and keys. Imports no torch."""

from __future__ import annotations

from pathlib import Path


def profile_names(incomplete: str) -> list[str]:
    """Return the shipped profiles and the YAML files here."""
    from llmtrain.profile.load import shipped_profiles

    return [*shipped_profiles(), *(str(path) for path in sorted(Path().glob("*.yaml")))]


def run_names(incomplete: str) -> list[str]:
    """Return the runs under runs/, as paths where a path was begun."""
    try:
        paths = sorted(path.parent for path in Path("runs").glob("*/run.yaml"))
    except OSError:
        return []
    return [str(path) if "/" in incomplete else path.name for path in paths]


def resumable_names(incomplete: str) -> list[str]:
    """Return `auto` and the runs under runs/."""
    return ["auto", *run_names(incomplete)]


def assignments(incomplete: str) -> list[str]:
    """Return every key of a profile with its equals sign."""
    from llmtrain.profile.load import known_paths

    return [f"{path}=" for path in known_paths()]


def topic_names(incomplete: str) -> list[str]:
    """Return the topics of `help`."""
    from llmtrain.cli.topics import pages

    return list(pages())


def schema_names(incomplete: str) -> list[str]:
    """Return the names of the published documents."""
    from llmtrain.documents.published import PUBLISHED

    return list(PUBLISHED)
