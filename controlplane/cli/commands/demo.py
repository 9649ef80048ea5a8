"""`demo`: the main job, on real processes and real data."""

from __future__ import annotations

import typer


def add_to(app: typer.Typer) -> None:
    """Registers this module's commands."""
