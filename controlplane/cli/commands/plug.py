"""`disk plug` and `disk unplug`: disks that come to a running machine, and go."""

from __future__ import annotations

import uuid
from typing import Annotated

import typer

from controlplane.cli import files
from controlplane.cli.command import command
from controlplane.cli.commands.instance import spinner
from controlplane.cli.failure import CommandError
from controlplane.cli.plain import plain
from controlplane.cli.session import Session
from stairwell.controlplane.v1 import instance_service_pb2 as pb

# A volume becomes active first, which waits for its members; a guest has half a minute to let go.
PLUG_SECONDS = 75.0


def add_to(disk: typer.Typer) -> None:
    """Registers this module's commands."""
    command(disk, "plug")(plug)
    command(disk, "unplug")(unplug)


async def plug(
    session: Session,
    path: Annotated[
        str, typer.Argument(metavar="FILE", help="An array with one disk, as `new -c` takes it.")
    ],
    instance: Annotated[
        str, typer.Argument(help="Instance; may be left out while there is only one.")
    ] = "",
) -> None:
    """Give a running machine one more disk (engine "qemu"); its guest sees it at once.

    The disk is recorded: a machine that is made again has it. Asked again with the same file it
    changes nothing.
    """
    disks, document = files.read_disks(path)
    if len(disks) != 1:
        raise CommandError(
            f"{path} has {len(disks)} disks", "plug them one by one, each from a file of its own"
        )
    # The file has an array around what the request calls `disk`.
    session.locate = lambda field: document.locate(field.replace("disk", "disks[0]", 1))
    request = pb.PlugDiskRequest(name=instance, disk=disks[0], request_id=str(uuid.uuid4()))
    with spinner(session, f"plugging {disks[0].name}"):
        response = await session.call(
            session.instances.PlugDisk, request, pb.PlugDiskResponse, seconds=PLUG_SECONDS
        )
    changed = response.instance
    session.show(
        plain(changed), f"{disks[0].name} plugged into {changed.name}: {', '.join(changed.disks)}"
    )


async def unplug(
    session: Session,
    name: Annotated[str, typer.Argument(help="Disk name or volume UUID.")],
) -> None:
    """Take a disk away from a running machine, once its guest has let it go, and forget it.

    What the guest flushed stays in the regions, which are retired. Unmount it in the guest first.
    """
    request = pb.UnplugDiskRequest(disk=name, request_id=str(uuid.uuid4()))
    with spinner(session, f"unplugging {name}"):
        response = await session.call(
            session.instances.UnplugDisk, request, pb.UnplugDiskResponse, seconds=PLUG_SECONDS
        )
    changed = response.instance
    left = ", ".join(changed.disks) or "no disk"
    session.show(plain(changed), f"{name} unplugged from {changed.name}, which has {left}")
