"""`health`: whether a daemon serves, for people and for container health checks."""

from __future__ import annotations

from typing import Annotated

import typer

from controlplane.cli.command import command
from controlplane.cli.session import Session
from stairlib.rpc.health_check import check

# A health check that waits longer has its answer already.
HEALTH_SECONDS = 3.0


def add_to(app: typer.Typer) -> None:
    """Registers this module's commands."""
    command(app, "health")(health)


async def health(
    session: Session,
    address: Annotated[
        str,
        typer.Argument(metavar="[HOST:PORT]", help="Any daemon; the control plane if left out."),
    ] = "",
    service: Annotated[
        str, typer.Option("--service", help="One service's full name; else the whole daemon.")
    ] = "",
) -> int:
    """Ask a daemon whether it serves. Exit 0 only if it does."""
    where = address or session.settings.address
    credentials = session.settings.credentials
    # With a token alone there is no certificate to show; the control plane's health needs neither.
    tls = credentials.files() or credentials.peer(where)
    status = await check(where, service, session.settings.timeout or HEALTH_SECONDS, tls=tls)
    session.show({"address": where, "service": service, "status": status.lower()}, status)
    return 0 if status == "SERVING" else 1
