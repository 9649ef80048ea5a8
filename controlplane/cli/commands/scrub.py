"""`disk scrub`, `disk scrub-stop`: a disk is filled from its read-only parent and loses it."""

from __future__ import annotations

import asyncio
import shlex
import uuid
from contextlib import aclosing
from typing import Annotated

import typer

from controlplane.cli import scrubs
from controlplane.cli.command import command
from controlplane.cli.display import Look, progress_display
from controlplane.cli.failure import CommandError
from controlplane.cli.plain import plain
from controlplane.cli.session import Session
from controlplane.cli.units import parse_size
from stairwell.controlplane.v1 import disk_service_pb2 as pb

Name = Annotated[str, typer.Argument(help="Disk name or volume UUID.")]
Path = Annotated[
    str,
    typer.Option(
        "--path",
        metavar="PATH",
        help="The volume in the disk's request whose parent it is, as sub_volumes[1]; the outermost"
        " one when left out.",
    ),
]


def add_to(disk: typer.Typer) -> None:
    """Registers this module's commands in the group of disks."""
    command(disk, "scrub")(scrub)
    command(disk, "scrub-stop")(scrub_stop)


async def scrub(
    session: Session,
    name: Name,
    path: Path = "",
    limit: Annotated[
        str,
        typer.Option(
            "--limit",
            metavar="RATE",
            help="Bytes a second, as 50MiB; 0 for none, which is also where a new one starts.",
        ),
    ] = "",
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return when it is recorded; it goes on by itself.")
    ] = False,
) -> int:
    """Copy what only a disk's read-only parent has into the disk, then drop the parent.

    The disk stays in use, and what its guest writes meanwhile wins. The scrub is durable: it goes
    on when you leave or a daemon restarts. At its end the recorded request has no parent any more
    and a higher generation; send replacements in that form from then on. Said again while it
    runs, this follows it, and changes its rate where --limit is given; `stairwell disk
    scrub-stop` ends it.
    """
    request = pb.StartScrubRequest(
        name=name,
        path=path,
        bytes_per_second_max=await _rate(session, name, path, limit),
        request_id=str(uuid.uuid4()),
    )
    response = await session.call(session.disks.StartScrub, request, pb.StartScrubResponse)
    if no_wait or scrubs.has_ended(response.scrub):
        session.show(plain(response.scrub), scrubs.started_line(response.scrub))
        return _exit_code(response.scrub)
    try:
        last = await follow(session, name, path)
    except asyncio.CancelledError:
        words = shlex.join(_options(name, path))
        session.note(
            f"the scrub goes on without you; follow it with `stairwell disk scrub {words}`, end it"
            f" with `stairwell disk scrub-stop {words}`"
        )
        raise
    if session.is_json:
        session.show(plain(last), "")
    elif last.state == pb.ScrubState.SCRUB_STATE_DONE:
        session.say(scrubs.closing_line(last))
    if last.state == pb.ScrubState.SCRUB_STATE_FAILED:
        again = f"`stairwell disk scrub {shlex.join(_options(name, path))}`"
        hint = f"when the cause is removed, {again} goes on; what was copied is not copied again"
        session.note(f"error: the scrub {scrubs.closing_line(last)}\nhint: {hint}")
    elif last.state == pb.ScrubState.SCRUB_STATE_STOPPED:
        session.note(scrubs.closing_line(last))
    return _exit_code(last)


async def _rate(session: Session, name: str, path: str, limit: str) -> int:
    """Bytes per second to ask for: what the user says, else what a running scrub has."""
    if limit:
        try:
            return parse_size(limit)
        except ValueError as error:
            raise CommandError(f"--limit: {error}") from None
    answer = await session.call(
        session.disks.GetDisk, pb.GetDiskRequest(name=name), pb.GetDiskResponse
    )
    running = scrubs.scrub_at(answer.disk, path)
    return 0 if running is None or scrubs.has_ended(running) else running.bytes_per_second_max


async def scrub_stop(session: Session, name: Name, path: Path = "") -> None:
    """End a running scrub. The parent stays, and so does what was copied."""
    response = await session.call(
        session.disks.StopScrub, pb.StopScrubRequest(name=name, path=path), pb.StopScrubResponse
    )
    session.show(plain(response.scrub), scrubs.closing_line(response.scrub))


async def follow(session: Session, name: str, path: str) -> pb.Scrub:
    """Shows a scrub's progress until it ends; survives a restart of the control plane."""
    speed = scrubs.Speed()
    look: Look[pb.Scrub] = Look(
        line=lambda one: scrubs.progress_line(one, speed.of(one)),
        live_line=lambda one, columns: scrubs.live_line(one, columns, speed.of(one)),
        phase=scrubs.phase_of,
        ended=scrubs.has_ended,
    )
    show, display = progress_display(session, look, quiet=session.is_json)

    def over(update: pb.WatchDiskResponse) -> bool:
        found = scrubs.scrub_at(update.disk, path)
        return found is None or scrubs.has_ended(found)

    updates = session.watch(
        session.disks.WatchDisk,
        pb.WatchDiskRequest(name=name),
        pb.WatchDiskResponse,
        until=over,
        on_away=lambda error: session.note(f"{error.message}; trying again"),
    )
    found: pb.Scrub | None = None
    with display:
        async with aclosing(updates) as messages:
            async for update in messages:
                found = scrubs.scrub_at(update.disk, path)
                if found is not None:
                    show(found)
    if found is None:
        raise CommandError(f"disk {name} was deleted and made again, and its scrub with it")
    return found


def _options(name: str, path: str) -> list[str]:
    return [name, "--path", path] if path else [name]


def _exit_code(one: pb.Scrub) -> int:
    """0 for one that is done or runs."""
    return int(one.state in (pb.ScrubState.SCRUB_STATE_STOPPED, pb.ScrubState.SCRUB_STATE_FAILED))
