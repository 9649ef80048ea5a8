"""`fleet list|register`: the downstairs the control plane knows."""

from __future__ import annotations

from typing import Annotated

import typer

from controlplane.cli import render
from controlplane.cli.command import command
from controlplane.cli.plain import plain
from controlplane.cli.session import Session
from stairwell.controlplane.v1 import fleet_service_pb2 as pb


def add_to(app: typer.Typer) -> None:
    """Registers this module's commands."""
    group = typer.Typer(help="Downstairs: members, spares, retired ones.", no_args_is_help=True)
    app.add_typer(group, name="fleet")
    command(group, "list")(list_all)
    command(group, "register")(register)


async def list_all(session: Session) -> None:
    """Show the downstairs that are members of volumes, retired ones, and spares."""
    response = await session.call(
        session.fleet.ListDownstairs, pb.ListDownstairsRequest(), pb.ListDownstairsResponse
    )
    found = list(response.downstairs)
    session.show({"downstairs": [plain(one) for one in found]}, render.fleet_table(found))


async def register(
    session: Session,
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where it listens.")],
) -> None:
    """Record a downstairs as a spare; it is asked what region it keeps."""
    response = await session.call(
        session.fleet.RegisterDownstairs,
        pb.RegisterDownstairsRequest(address=address),
        pb.RegisterDownstairsResponse,
    )
    session.show(plain(response.downstairs), render.fleet_table([response.downstairs]))
