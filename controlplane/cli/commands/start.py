"""`replacement start`: a replacement by what is wanted, without writing a construction request."""

from __future__ import annotations

import uuid
from typing import Annotated

import typer

from controlplane.cli import fleet_view
from controlplane.cli.command import command
from controlplane.cli.plain import plain
from controlplane.cli.session import Session
from stairwell.controlplane.v1 import replacement_service_pb2 as pb

# Every spare is looked at before one is chosen.
START_SECONDS = 120.0


def add_to(replacement: typer.Typer) -> None:
    """Registers this module's command in the group of replacements."""
    command(replacement, "start")(start)


async def start(
    session: Session,
    disk: Annotated[str, typer.Argument(metavar="DISK", help="Disk name or volume UUID.")],
    slot: Annotated[
        int | None, typer.Option("--slot", metavar="N", min=0, help="The slot of the member.")
    ] = None,
    old: Annotated[
        str, typer.Option("--from", metavar="HOST:PORT", help="Or the member's address.")
    ] = "",
    to: Annotated[
        str, typer.Option("--to", metavar="HOST:PORT", help="The new member; else a spare.")
    ] = "",
    region: Annotated[
        str | None,
        typer.Option("--region", metavar="PATH", help="Its region, as sub_volumes[1]."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only choose and judge; change nothing.")
    ] = False,
) -> None:
    """Replace a member of a disk, by a spare of the fleet if none is named.

    The construction request is made from the recorded one, with a higher generation, and goes the
    way of `stairwell vcr --vcr-replace`. A spare must fit and stand apart: never two members of a
    set on one host or in one failure domain. What was not taken is shown with the reason, and kept
    with the replacement.
    """
    response = await session.call(
        session.replacements.StartReplacement,
        pb.StartReplacementRequest(
            disk=disk,
            slot=slot,
            old_target=old,
            new_target=to,
            region_path=region,
            request_id="" if dry_run else str(uuid.uuid4()),
            validate_only=dry_run,
        ),
        pb.StartReplacementResponse,
        seconds=START_SECONDS,
    )
    session.show(plain(response), fleet_view.start_view(response))
    if response.HasField("replacement") and not session.is_json:
        session.say(f"`stairwell replacement watch {response.replacement.id}` follows it")
