"""Upload exported files to the Hugging Face Hub, or a server with its API."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from llmtrain.data.sources.urls import store_errors
from llmtrain.errors import LlmtrainError, UsageError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def require_push(repository: str) -> None:
    """Raise UsageError unless `repository` can be pushed to: its name, package, network, token."""
    if not _REPOSITORY.fullmatch(repository):
        raise UsageError(
            f"--push {repository} is not the name of a repository", hint="--push owner/name"
        )
    try:
        import huggingface_hub
    except ModuleNotFoundError:
        raise UsageError(
            "--push needs the package huggingface_hub, which is not installed",
            hint="pip install 'llmtrain[hf]'",
        ) from None
    if not huggingface_hub.get_token():
        raise UsageError(
            f"--push {repository} needs a token that may write, and there is none",
            hint="hf auth login, or set HF_TOKEN",
        )
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise UsageError(
            f"--push {repository} needs the Hub, and HF_HUB_OFFLINE forbids it",
            hint="unset HF_HUB_OFFLINE, or leave --push out",
        )


def push(repository: str, files: Sequence[Path]) -> str:
    """Upload files to a model repository, which is created private; return its address.

    One commit has all of them. Raises LlmtrainError: what was exported stays where it is.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # the command shows its own
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    failures: tuple[type[BaseException], ...] = (*store_errors(), RuntimeError)
    operations = [CommitOperationAdd(path.name, path) for path in files]
    try:
        address = api.create_repo(repository, private=True, exist_ok=True)
        message = "Upload " + ", ".join(path.name for path in files)
        api.create_commit(repository, operations, commit_message=message)
    except failures as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LlmtrainError(
            f"{repository} did not take the files: {reason}",
            hint="they are exported; upload them by hf upload, or give the command again "
            "with --overwrite",
        ) from None
    return str(address)
