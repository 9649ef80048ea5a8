"""`trace`: where the time of a replacement went, over all daemons."""

from __future__ import annotations

from typing import Annotated

import typer

from controlplane.cli.command import command
from controlplane.cli.commands.replacement import list_replacements
from controlplane.cli.failure import CommandError
from controlplane.cli.plain import plain
from controlplane.cli.session import Session
from controlplane.cli.waterfall import services, waterfall
from stairwell.controlplane.v1 import replacement_service_pb2 as pb


def add_to(app: typer.Typer) -> None:
    """Registers this module's commands."""
    command(app, "trace")(trace)


async def get_trace(session: Session, name: str) -> pb.GetReplacementTraceResponse:
    """The spans of a replacement, by its id or its trace's."""
    return await session.call(
        session.replacements.GetReplacementTrace,
        pb.GetReplacementTraceRequest(id=name),
        pb.GetReplacementTraceResponse,
    )


async def trace(
    session: Session,
    name: Annotated[
        str,
        typer.Argument(
            metavar="[REPLACEMENT|TRACE_ID]", help="The newest replacement when left out."
        ),
    ] = "",
    every: Annotated[
        bool, typer.Option("--all", help="Show every span; like ones are folded otherwise.")
    ] = False,
) -> None:
    """Print the waterfall of a replacement's trace."""
    response = await get_trace(session, name or await _newest(session))
    data = plain(response)
    data["services"] = services(response.spans)
    session.show(data, waterfall(response.trace_id, list(response.spans), fold=not every))


async def _newest(session: Session) -> str:
    found = await list_replacements(session)
    if not found:
        raise CommandError("there is no replacement to show", "`stairwell vcr` starts one")
    return max(found, key=lambda one: one.create_time.ToNanoseconds()).id
