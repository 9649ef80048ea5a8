"""`disk status`, `disk map`, `disk verify`, `disk snapshot`: what a disk is kept on, what each of
its extents is like, whether its copies agree, and a copy of all that it holds now.

`disk scrub` and `disk scrub-stop`, `disk plug` and `disk unplug` are in modules of their own.
"""

from __future__ import annotations

import uuid
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from controlplane.cli import disks as disk_views
from controlplane.cli import render
from controlplane.cli.command import command
from controlplane.cli.commands import plug, scrub
from controlplane.cli.commands.instance import list_disks, spinner
from controlplane.cli.extents import extent_maps
from controlplane.cli.failure import CommandError
from controlplane.cli.plain import plain
from controlplane.cli.session import Session
from stairwell.controlplane.v1 import disk_service_pb2 as pb

# Reading back every stored block of three members takes as long as their disks need.
VERIFY_SECONDS = 3600.0


def add_to(app: typer.Typer) -> None:
    """Registers this module's commands."""
    disk = typer.Typer(help="Disks: members, sources and parents.", no_args_is_help=True)
    app.add_typer(disk, name="disk")
    command(disk, "status")(status)
    command(disk, "map")(extents)
    command(disk, "uri")(uri)
    plug.add_to(disk)
    command(disk, "verify")(verify)
    command(disk, "snapshot")(snapshot)
    scrub.add_to(disk)


async def get_disk(session: Session, name: str) -> pb.Disk:
    """One disk with what its machine says of it; `name` may be the volume's UUID."""
    response = await session.call(
        session.disks.GetDisk, pb.GetDiskRequest(name=name), pb.GetDiskResponse
    )
    return response.disk


async def status(
    session: Session,
    name: Annotated[str, typer.Argument(help="Disk name or volume UUID; all when left out.")] = "",
) -> None:
    """Show what disks are kept on: each region of the tree with its members, files and URLs.

    A region is named by its path in the disk's request; those of read-only parents, which may
    serve other disks too, are marked. Scrubs, running and ended, stand at the end.
    """
    if name:
        disk = await get_disk(session, name)
        session.show(plain(disk), disk_views.disk_status(disk))
        return
    disks = [await get_disk(session, one.name) for one in await list_disks(session)]
    parts: list[RenderableType] = []
    for disk in disks:
        parts += [""] * bool(parts) + [disk_views.disk_status(disk)]
    human = Group(*parts) if parts else "no disks; `stairwell new` makes an instance with disks"
    session.show({"disks": [plain(disk) for disk in disks]}, human)


async def extents(
    session: Session,
    name: Annotated[str, typer.Argument(help="Disk name or volume UUID.")],
) -> None:
    """Show what is known of each extent of a disk on each member: in sync, written since the last
    flush, to be copied, being copied, copied by the repair that runs.

    With --output json a member's extents are one text: a letter for each run of extents in the
    same state (s in sync, d dirty, x to be copied, w being copied, c copied, u unknown), after its
    length unless that is 1, as in 5000c4w7796x.
    """
    response = await session.call(
        session.disks.GetDiskExtents,
        pb.GetDiskExtentsRequest(name=name),
        pb.GetDiskExtentsResponse,
    )
    human = (
        extent_maps(response.regions)
        if response.regions
        else "no machine runs this disk now, so nothing is known of its extents; "
        "`stairwell list` shows its instance"
    )
    session.show(plain(response), human)


async def uri(
    session: Session,
    name: Annotated[str, typer.Argument(help="Disk name or volume UUID.")],
    vhost_user: Annotated[
        bool, typer.Option("--vhost-user", help="The socket for a QEMU of your own instead.")
    ] = False,
    remote: Annotated[
        bool, typer.Option("--remote", help="The export as other hosts reach it, by TCP, instead.")
    ] = False,
) -> None:
    """Print the URI of a disk's NBD export, and nothing else, for other commands to use:

    qemu-io -f raw -c "read 0 1M" "$(stairwell disk uri block2)"
    """
    if vhost_user and remote:
        raise CommandError("--vhost-user and --remote exclude each other")
    volume = (await get_disk(session, name)).volume
    field, what = "nbd_uri", "NBD export"
    hint = "`stairwell list` shows its instance; `stairwell state run` starts that"
    if vhost_user:
        field, what = "vhost_user_socket", "vhost-user socket"
    elif remote:
        field, what = "nbd_gateway_uri", "NBD export for other hosts"
        if volume.nbd_uri:
            hint = "start its vmmd with --nbd-listen: docs/machines.md"
    found = getattr(volume, field)
    if not found:
        raise CommandError(
            f"{name} has no {what}: no machine has it open that offers one", hint=hint
        )
    session.show({field: found}, Text(found))


async def verify(
    session: Session,
    name: Annotated[str, typer.Argument(help="Disk name or volume UUID.")],
    read_data: Annotated[
        bool, typer.Option("--read-data", help="Also read and check every stored block.")
    ] = False,
) -> int:
    """Flush, then compare all members block for block; the disk stays in use. Exit 1 if unequal."""
    with spinner(session, f"comparing the members of {name}"):
        response = await session.call(
            session.disks.VerifyDisk,
            pb.VerifyDiskRequest(name=name, read_data=read_data),
            pb.VerifyDiskResponse,
            seconds=VERIFY_SECONDS,
        )
    report = response.report
    session.show(plain(report), render.verify_view(name, report))
    return 0 if report.equal and not report.bad_blocks else 1


async def snapshot(
    session: Session,
    name: Annotated[str, typer.Argument(help="Disk name or volume UUID.")],
    snapshot_name: Annotated[str, typer.Argument(metavar="SNAPSHOT", help="What to call it.")],
) -> None:
    """Keep, under a name, what a disk holds now; the disk stays in use.

    All three members of each region keep it at one moment, without copying data, so all have to be
    active. Each is served, read-only, by `downstaird run --snapshot SNAPSHOT` on its directory;
    `downstaird snapshot list` and `delete` look after them.
    """
    with spinner(session, f"taking {snapshot_name} of {name}"):
        response = await session.call(
            session.disks.SnapshotDisk,
            pb.SnapshotDiskRequest(name=name, snapshot=snapshot_name, request_id=str(uuid.uuid4())),
            pb.SnapshotDiskResponse,
        )
    where = "; ".join(
        f"{region.path or 'region'}: generation {region.generation}, flush {region.flush_number}, "
        f"on {', '.join(region.targets)}"
        for region in response.regions
    )
    session.show(plain(response), f"{snapshot_name} of {name} is taken: {where}")
