"""`top`: the fleet, machines, disks and replacements at a glance, live."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer

from controlplane.cli.command import command
from controlplane.cli.session import Session

INTERVAL_SECONDS = 1.0


def add_to(app: typer.Typer) -> None:
    """Registers this module's commands."""
    command(app, "top")(top)


async def top(
    session: Session,
    once: Annotated[
        bool, typer.Option("--once", help="Print it once as text and end; works in a pipe.")
    ] = False,
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.2, max=60, help="Between looks.")
    ] = INTERVAL_SECONDS,
) -> None:
    """Watch disks with their three slots, replacements, machines and the fleet.

    Keys: arrows choose a disk; p and r pause and resume its replacement, l limits its repairs; 1 to
    4 show disks, replacements, machines, the fleet; q ends. Goes on when the control plane is away.

    The screen needs the extra `tui`, which brings textual. Without it, or where the output is no
    terminal, the text of --once is printed.
    """
    # Late: nothing else of the client needs them.
    from controlplane.cli.top.feed import Feed
    from controlplane.cli.top.model import Model
    from controlplane.cli.top.rows import as_data, as_text

    model = Model()
    feed = Feed(session, model, model.take)
    # Also before a screen: a control plane that is not there is an error, and not an empty screen.
    await feed.round()
    drawn = not once and not session.is_json and session.out.is_terminal
    if drawn and importlib.util.find_spec("textual") is None:
        session.note("the live screen needs textual: pip install 'stairwell[tui]'; once, then:")
        drawn = False
    if not drawn:
        await feed.replacements()
        address = session.settings.address
        session.show(as_data(model, address), as_text(model, address))
        return
    from controlplane.cli.top.screen import TopApp

    await TopApp(session, model, interval).run_async()
