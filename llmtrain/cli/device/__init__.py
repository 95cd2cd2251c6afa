"""`llmtrain device`: what the machine has, and how fast its CPU is."""

from __future__ import annotations

import typer

from llmtrain.cli.command import command, group
from llmtrain.cli.device.bench import bench
from llmtrain.cli.device.info import info


def register(app: typer.Typer) -> None:
    """Add the group `device` to `app`."""
    device = group("What the machine has, and how it will be used.")
    app.add_typer(device, name="device")
    command(device, "info", "llmtrain device info --profile cpu-small")(info)
    command(device, "bench", "llmtrain device bench --profile cpu-small")(bench)
