"""What import and export share: pieces of a stream, and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import DownloadColumn, TransferSpeedColumn

from downstaird.commands.bars import bar

# Read and written at a time: large writes go straight to their places.
PIECE_BYTES = 4 << 20


@contextmanager
def shown(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar; the function takes the bytes done since it was called last."""
    with bar(what, DownloadColumn(), TransferSpeedColumn()) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
