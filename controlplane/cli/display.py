"""How the progress of something is shown while a person waits: one line that moves, or a log.

A terminal gets one line that rewrites itself; anything else gets lines, at a readable pace; a
program that asked for JSON gets nothing here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar

from rich.live import Live
from rich.text import Text

from controlplane.cli.session import Session
from controlplane.cli.watch import Pace

_T = TypeVar("_T")

# A terminal line changes this often at most.
REFRESHES_PER_SECOND = 8


@dataclass(frozen=True, slots=True)
class Look(Generic[_T]):
    """How one kind of thing looks: in a log, in a line of so many columns; what makes an update
    news, and which is the last one."""

    line: Callable[[_T], str]
    live_line: Callable[[_T, int], str]
    phase: Callable[[_T], object]
    ended: Callable[[_T], bool]


def progress_display(
    session: Session, look: Look[_T], *, quiet: bool
) -> tuple[Callable[[_T], None], AbstractContextManager[object]]:
    """How updates are shown, and what has to be open meanwhile."""
    if quiet:
        return (lambda _: None), nullcontext()
    if session.out.is_terminal:
        live = Live(
            Text("…"), console=session.out, refresh_per_second=REFRESHES_PER_SECOND, transient=True
        )

        def move(one: _T) -> None:
            text = look.live_line(one, session.out.width)
            live.update(Text(text, no_wrap=True, overflow="ellipsis"))

        return move, live
    pace = Pace()
    loop = asyncio.get_running_loop()

    def line(one: _T) -> None:
        if pace.admits(look.phase(one), loop.time(), final=look.ended(one)):
            session.line(None, look.line(one))

    return line, nullcontext()
