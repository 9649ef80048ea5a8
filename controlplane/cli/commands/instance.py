"""`new`, `state`, `get`, `list`, `monitor`, `delete`: machines."""

from __future__ import annotations

import asyncio
import enum
import uuid
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import Annotated, Any

import typer

from controlplane.cli import files, render
from controlplane.cli.command import command
from controlplane.cli.failure import CommandError
from controlplane.cli.plain import plain
from controlplane.cli.session import Session
from controlplane.cli.watch import wanted_reached
from stairlib.wire.durations import duration
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import instance_service_pb2 as pb
from stairwell.vmmd.v1 import machine_service_pb2 as machine_pb

# Making a machine starts a process and builds its devices.
CREATE_SECONDS = 60.0
# A machine runs within a second or two; past this, one of its disks' members is probably away.
SLOW_SECONDS = 5.0
# A guest that obeys its power button is done by then.
SHUTDOWN_SECONDS = 120.0

Name = Annotated[str, typer.Argument(help="Instance; may be left out while there is only one.")]


class Wanted(enum.StrEnum):
    """What `state` can ask for."""

    RUN = "run"
    STOP = "stop"
    REBOOT = "reboot"
    SHUTDOWN = "shutdown"


# A shutdown is pressed, not requested; it has happened once a stop would have.
_REQUESTED = {
    Wanted.SHUTDOWN: pb.RequestedState.REQUESTED_STATE_STOP,
    Wanted.RUN: pb.RequestedState.REQUESTED_STATE_RUN,
    Wanted.STOP: pb.RequestedState.REQUESTED_STATE_STOP,
    Wanted.REBOOT: pb.RequestedState.REQUESTED_STATE_REBOOT,
}


def add_to(app: typer.Typer) -> None:
    """Registers this module's commands."""
    command(app, "new")(new)
    command(app, "state")(state)
    command(app, "get")(get)
    command(app, "list")(list_all)
    command(app, "monitor")(monitor)
    command(app, "delete")(delete)


async def new(
    session: Session,
    name: Annotated[str, typer.Argument(help="Name of the new instance.")],
    crucible_disks: Annotated[
        str, typer.Option("--crucible-disks", metavar="FILE", help="JSON array of its disks.")
    ] = "",
    instance_id: Annotated[
        str, typer.Option("--id", "-u", metavar="UUID", help="Its id; made up when left out.")
    ] = "",
    vcpus: Annotated[int, typer.Option("--vcpus", "-c", min=1, help="Virtual CPUs.")] = 4,
    memory: Annotated[int, typer.Option("--memory", "-m", min=1, help="MiB of memory.")] = 1024,
    with_two_after: Annotated[
        float,
        typer.Option(
            "--with-two-after",
            metavar="SECONDS",
            min=0,
            help="Start with two copies of a disk when the third stays away so long; 0 waits.",
        ),
    ] = 0,
) -> None:
    """Make an instance with its disks; returns when its machine exists. It is not started."""
    request = pb.CreateInstanceRequest(
        name=name, request_id=str(uuid.uuid4()), cpus=vcpus, memory_mib=memory
    )
    if with_two_after:
        request.activate_with_two_after.CopyFrom(duration(with_two_after))
    if instance_id:
        request.id = checked_uuid(instance_id, "--id")
    if crucible_disks:
        disks, document = files.read_disks(crucible_disks)
        request.disks.extend(disks)
        session.locate = document.locate
    with spinner(session, f"making {name}"):
        response = await session.call(
            session.instances.CreateInstance,
            request,
            pb.CreateInstanceResponse,
            seconds=CREATE_SECONDS,
        )
    instance = response.instance
    disks_text = f" with {', '.join(instance.disks)}" if instance.disks else ""
    session.show(
        plain(instance),
        f"{instance.name} made{disks_text}, id {instance.id}; "
        f"start it with `stairwell state run {instance.name}`",
    )


async def state(
    session: Session,
    wanted: Annotated[
        Wanted,
        typer.Argument(
            metavar="run|stop|reboot|shutdown", case_sensitive=False, help="What to do."
        ),
    ],
    name: Name = "",
    wait: Annotated[bool, typer.Option("--wait", help="Return only when it is done.")] = False,
) -> int:
    """Change an instance's state; returns when that is queued, or with --wait when done.

    stop ends the machine at once; what its guest has flushed is kept. shutdown presses the power
    button and leaves it to the guest (engine "qemu").
    """
    if wanted is Wanted.SHUTDOWN:
        instance = await press(session, name, machine_pb.GUEST_SIGNAL_POWER_BUTTON)
    else:
        instance = await _request_state(session, wanted, name)
    if wait:
        with spinner(session, f"waiting for {instance.name} to {wanted.value}"):
            instance = await _wait(session, wanted, instance)
        text = f"{instance.name} is {render.instance_word(instance.state)}"
    else:
        done = "power button pressed" if wanted is Wanted.SHUTDOWN else f"{wanted.value} queued"
        text = f"{instance.name}: {done}"
    session.show(plain(instance), text)
    return 0


async def press(
    session: Session, name: str, signal: machine_pb.GuestSignal.ValueType
) -> pb.Instance:
    """Presses a button of the machine; the instance as it was."""
    request = pb.SignalGuestRequest(name=name, signal=signal)
    method = session.instances.SignalGuest
    return (await session.call(method, request, pb.SignalGuestResponse)).instance


async def _request_state(session: Session, wanted: Wanted, name: str) -> pb.Instance:
    request = pb.SetInstanceStateRequest(
        name=name, state=_REQUESTED[wanted], request_id=str(uuid.uuid4())
    )
    response = await session.call(
        session.instances.SetInstanceState, request, pb.SetInstanceStateResponse
    )
    return response.instance


async def _wait(session: Session, wanted: Wanted, queued: pb.Instance) -> pb.Instance:
    """Waits as long as --timeout says, else for ever, but for a guest that was only asked to shut
    down; says where to look when it takes long."""
    seconds = session.settings.timeout
    if seconds is None and wanted is Wanted.SHUTDOWN:
        seconds = SHUTDOWN_SECONDS
    loop = asyncio.get_running_loop()
    look = where_to_look(wanted, queued.name)
    slow = loop.call_later(SLOW_SECONDS, session.note, f"still waiting; {look}")
    try:
        async with asyncio.timeout(seconds):
            return await reach_state(session, wanted, queued)
    except TimeoutError:
        raise CommandError(
            f"{queued.name} did not {wanted.value} within {seconds:g} s; "
            + ("it was asked" if wanted is Wanted.SHUTDOWN else "the request stays queued"),
            look,
        ) from None
    finally:
        slow.cancel()


def where_to_look(wanted: Wanted, name: str) -> str:
    """What to do when it takes long: a guest need not obey its power button."""
    if wanted is Wanted.SHUTDOWN:
        return (
            f"`stairwell serial {name}` shows what the guest says; one that ignores its power"
            f" button is ended by `stairwell state stop {name}`"
        )
    return f"`stairwell disk status` says what the disks of {name} wait for"


async def reach_state(session: Session, wanted: Wanted, queued: pb.Instance) -> pb.Instance:
    """Follows the instance until it is where it was sent; a state that cannot lead there raises."""
    requested = _REQUESTED[wanted]
    if wanted_reached(requested, queued, queued):
        return queued
    last = queued
    updates = session.watch(
        session.instances.WatchInstance,
        pb.WatchInstanceRequest(name=queued.id or queued.name),
        pb.WatchInstanceResponse,
        until=lambda update: wanted_reached(requested, queued, update.instance) is not None,
        on_away=lambda error: session.note(f"{error.message}; trying again"),
    )
    async with aclosing(updates) as messages:
        async for update in messages:
            last = update.instance
    if not wanted_reached(requested, queued, last):
        word = render.instance_word(last.state)
        reason = f": {last.reason}" if last.reason else ""
        raise CommandError(
            f"{last.name} is {word} and did not {wanted.value}{reason}",
            "`stairwell get` and the vmmd log say more; remove a failed instance with "
            f"`stairwell delete {last.name}`",
        )
    return last


async def get(session: Session, name: Name = "") -> None:
    """Show one instance."""
    response = await session.call(
        session.instances.GetInstance, pb.GetInstanceRequest(name=name), pb.GetInstanceResponse
    )
    session.show(plain(response.instance), render.instance_view(response.instance))


async def list_all(session: Session) -> None:
    """Show all instances and disks."""
    instances = await list_instances(session)
    disks = await list_disks(session)
    session.show(
        {"instances": [plain(one) for one in instances], "disks": [plain(one) for one in disks]},
        render.overview(instances, disks),
    )


async def list_instances(session: Session) -> list[pb.Instance]:
    """All instances, page by page."""
    found: list[pb.Instance] = []
    token = ""
    while True:
        page = await session.call(
            session.instances.ListInstances,
            pb.ListInstancesRequest(page_token=token),
            pb.ListInstancesResponse,
        )
        found.extend(page.instances)
        token = page.next_page_token
        if not token:
            return found


async def list_disks(session: Session) -> list[disk_pb.Disk]:
    """All disks, page by page."""
    found: list[disk_pb.Disk] = []
    token = ""
    while True:
        page = await session.call(
            session.disks.ListDisks,
            disk_pb.ListDisksRequest(page_token=token),
            disk_pb.ListDisksResponse,
        )
        found.extend(page.disks)
        token = page.next_page_token
        if not token:
            return found


async def monitor(session: Session, name: Name = "") -> int:
    """Print each state of an instance until it is destroyed."""
    last = 0
    updates = session.watch(
        session.instances.WatchInstance,
        pb.WatchInstanceRequest(name=name),
        pb.WatchInstanceResponse,
        until=lambda update: update.instance.state in _LAST_STATES,
        on_away=lambda error: session.note(f"{error.message}; trying again"),
    )
    seen: tuple[int, int] | None = None
    async with aclosing(updates) as messages:
        async for update in messages:
            instance = update.instance
            now = (instance.state, instance.state_generation)
            if now != seen:
                session.line(plain(instance), render.instance_change(instance))
            seen, last = now, instance.state
    return 1 if last == pb.InstanceState.INSTANCE_STATE_FAILED else 0


# Nothing comes after these by itself.
_LAST_STATES = frozenset(
    {pb.InstanceState.INSTANCE_STATE_DESTROYED, pb.InstanceState.INSTANCE_STATE_FAILED}
)


async def delete(session: Session, name: Annotated[str, typer.Argument(help="Instance.")]) -> None:
    """Remove an instance; its machine is stopped first. The regions of its disks stay."""
    with spinner(session, f"removing {name}"):
        await session.call(
            session.instances.DeleteInstance,
            pb.DeleteInstanceRequest(name=name),
            pb.DeleteInstanceResponse,
            seconds=CREATE_SECONDS,
        )
    session.show({"deleted": name}, f"{name} removed")


def checked_uuid(text: str, option: str) -> str:
    """The UUID in its canonical form, or a CommandError that names the option."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise CommandError(f"{option} {text}: not a UUID", "leave it out to get one") from None


def spinner(session: Session, text: str) -> AbstractContextManager[Any]:
    """Something that moves while a person waits; nothing where nobody looks."""
    if session.is_json or not session.err.is_terminal:
        return nullcontext()
    return session.err.status(text)
