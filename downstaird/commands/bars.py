"""How far a command is, for whoever watches it."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn


def bar(what: str, *columns: ProgressColumn) -> Progress:
    """A bar on stderr, where that is a terminal; it goes away at the end."""
    return Progress(
        TextColumn(what),
        BarColumn(),
        *columns,
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
