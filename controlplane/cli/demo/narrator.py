"""How the demo tells what it does: a line for each step, and moving lines in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from controlplane.cli.watch import Pace

REFRESHES_PER_SECOND = 8

Show = Callable[[str, object], None]


class Narrator:
    """Prints to one console, with the seconds since the beginning before each line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._start

    def step(self, text: str) -> None:
        """A step that has been made or is about to be."""
        self._console.print(f"[{self.elapsed:5.1f} s] {text}", soft_wrap=True)

    def show(self, what: RenderableType) -> None:
        """A result, without a time."""
        self._console.print(what)

    @contextmanager
    def progress(self) -> Iterator[Show]:
        """Shows texts that replace each other; `show(text, phase)`.

        A terminal has one moving line. Elsewhere a line appears when the phase changes, and
        otherwise every few seconds.
        """
        if not self._console.is_terminal:
            pace = Pace()

            def line(text: str, phase: object) -> None:
                if pace.admits(phase, time.monotonic()):
                    self.step(f"  {text}")

            yield line
            return
        with Live(
            Text(""),
            console=self._console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
        ) as live:
            yield lambda text, _: live.update(
                Text(f"          {text}", no_wrap=True, overflow="ellipsis")
            )
