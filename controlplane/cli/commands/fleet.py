"""`fleet list|register|deregister|policy` and the drains: the downstairs the control plane knows,
and what may be done with them."""

from __future__ import annotations

import uuid
from contextlib import aclosing
from typing import Annotated

import typer

from controlplane.cli import fleet_view
from controlplane.cli.command import command
from controlplane.cli.failure import CommandError
from controlplane.cli.plain import plain
from controlplane.cli.session import Session
from controlplane.cli.switch import Switch
from controlplane.cli.units import parse_duration, parse_size
from stairlib.wire.durations import duration
from stairwell.controlplane.v1 import fleet_service_pb2 as pb

Address = Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where it listens.")]
DrainName = Annotated[
    str, typer.Argument(metavar="DRAIN", help="A drain's id, or the host or address it is of.")
]
# A look at many that are away takes a few rounds of their deadlines.
LOOK_SECONDS = 120.0


def add_to(app: typer.Typer) -> None:
    """Registers this module's commands."""
    group = typer.Typer(
        help="Downstairs: members, spares, retired ones; what may be done with them unasked.",
        no_args_is_help=True,
    )
    app.add_typer(group, name="fleet")
    command(group, "list")(list_all)
    command(group, "register")(register)
    command(group, "deregister")(deregister)
    command(group, "agent")(agent)
    command(group, "agents")(agents)
    command(group, "policy")(policy)
    command(group, "drain")(drain)
    command(group, "drains")(drains)
    command(group, "drain-cancel")(drain_cancel)


async def list_all(
    session: Session,
    look: Annotated[
        bool,
        typer.Option(
            "--look", help="Look at each now, instead of telling what the last look found."
        ),
    ] = False,
) -> None:
    """Show the downstairs that are members of volumes, retired ones, and spares.

    HOST and DOMAIN are what placement goes by: no two members of a set share one. SEEN is when it
    last answered; each is looked at every half minute.
    """
    response = await session.call(
        session.fleet.ListDownstairs,
        pb.ListDownstairsRequest(look=look),
        pb.ListDownstairsResponse,
        seconds=LOOK_SECONDS,
    )
    found = list(response.downstairs)
    session.show({"downstairs": [plain(one) for one in found]}, fleet_view.fleet_table(found))


async def register(
    session: Session,
    address: Address,
    host: Annotated[
        str | None,
        typer.Option("--host", help="The host it is on; the address's when nothing was said."),
    ] = None,
    domain: Annotated[
        str | None,
        typer.Option("--domain", help='What fails together: a rack, a site. "" for the host.'),
    ] = None,
    reserve: Annotated[
        str | None,
        typer.Option("--reserve", metavar="DISK", help='Set it aside for a disk; "" for none.'),
    ] = None,
) -> None:
    """Record a downstairs as a spare; it is asked what region it keeps.

    Register members too, to say where they stand: they stay members. Said again, this changes what
    is given and leaves the rest.
    """
    response = await session.call(
        session.fleet.RegisterDownstairs,
        pb.RegisterDownstairsRequest(
            address=address, host=host, failure_domain=domain, reserved_for=reserve
        ),
        pb.RegisterDownstairsResponse,
    )
    session.show(plain(response.downstairs), fleet_view.downstairs_view(response.downstairs))


async def deregister(session: Session, address: Address) -> None:
    """Forget a downstairs that no disk uses."""
    await session.call(
        session.fleet.DeregisterDownstairs,
        pb.DeregisterDownstairsRequest(address=address),
        pb.DeregisterDownstairsResponse,
    )
    session.show({"address": address}, f"{address} is forgotten")


async def agent(
    session: Session,
    address: Address,
    host: Annotated[
        str | None, typer.Option("--host", help="The host it is on; its own word when left out.")
    ] = None,
    domain: Annotated[
        str | None, typer.Option("--domain", help="What fails together; its own word likewise.")
    ] = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Forget it; what it has made stays.")
    ] = False,
) -> None:
    """Record the agent of a host (`downstaird agent`), so that it may be asked for regions.

    Where no spare fits a replacement, the agent that fits best makes a region for it. What was made
    for a replacement that came to nothing is destroyed again.
    """
    if forget:
        await session.call(
            session.fleet.DeregisterAgent,
            pb.DeregisterAgentRequest(address=address),
            pb.DeregisterAgentResponse,
        )
        session.show({"address": address}, f"the agent at {address} is forgotten")
        return
    response = await session.call(
        session.fleet.RegisterAgent,
        pb.RegisterAgentRequest(address=address, host=host, failure_domain=domain),
        pb.RegisterAgentResponse,
    )
    session.show(plain(response.agent), fleet_view.agents_table([response.agent]))


async def agents(session: Session) -> None:
    """Show the agents that may be asked for regions, as they are now."""
    response = await session.call(
        session.fleet.ListAgents, pb.ListAgentsRequest(), pb.ListAgentsResponse
    )
    found = list(response.agents)
    session.show({"agents": [plain(one) for one in found]}, fleet_view.agents_table(found))


async def policy(
    session: Session,
    automatic: Annotated[
        Switch | None,
        typer.Option("--automatic", help="Whether members that are gone are replaced unasked."),
    ] = None,
    grace: Annotated[
        str, typer.Option("--grace", metavar="TIME", help="How long one must be gone, as 10m.")
    ] = "",
    maintenance: Annotated[
        Switch | None,
        typer.Option("--maintenance", help="Holds all that is begun unasked, drains included."),
    ] = None,
    at_once: Annotated[
        int | None,
        typer.Option("--at-once", metavar="N", min=1, help="Replacements in the fleet at once."),
    ] = None,
    repair_rate: Annotated[
        str,
        typer.Option(
            "--repair-rate",
            metavar="RATE",
            help="What all replacements together may copy in a second, as 200M; 0 for no limit.",
        ),
    ] = "",
) -> None:
    """Show what may be done unasked, or change it; and the members that wait, each with the reason.

    Turn --maintenance on before you restart hosts on purpose, and off again after. What was begun
    before goes on.
    """
    if (automatic, maintenance, at_once) != (None,) * 3 or grace or repair_rate:
        request = pb.SetFleetPolicyRequest(at_once_max=at_once)
        if automatic is not None:
            request.automatic = automatic is Switch.ON
        if maintenance is not None:
            request.maintenance = maintenance is Switch.ON
        if grace:
            try:
                request.grace.CopyFrom(duration(parse_duration(grace)))
            except ValueError as error:
                raise CommandError(f"--grace: {error}") from None
        if repair_rate:
            try:
                request.repair_bytes_per_second = parse_size(repair_rate)
            except ValueError as error:
                raise CommandError(f"--repair-rate: {error}") from None
        await session.call(session.fleet.SetFleetPolicy, request, pb.SetFleetPolicyResponse)
    response = await session.call(
        session.fleet.GetFleetPolicy, pb.GetFleetPolicyRequest(), pb.GetFleetPolicyResponse
    )
    view = fleet_view.policy_view(response.policy, list(response.faulted))
    session.show(plain(response), view)


async def drain(
    session: Session,
    target: Annotated[
        str, typer.Argument(metavar="HOST", help="A host as `fleet list` shows it, or an address.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what there is to move.")
    ] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return when it is recorded; it goes on by itself.")
    ] = False,
) -> int:
    """Empty a host: replace each member on it by a spare elsewhere, one volume at a time.

    The new copy is whole before the old one is let go. The drain is durable: it goes on when you
    leave or a daemon restarts, and this command, said again, follows it. When it is done nothing
    uses the host, and nothing is placed there until `stairwell fleet drain-cancel HOST`.
    """
    request = pb.DrainDownstairsRequest(
        target=target, request_id=str(uuid.uuid4()), validate_only=dry_run
    )
    response = await session.call(
        session.fleet.DrainDownstairs, request, pb.DrainDownstairsResponse
    )
    if dry_run or no_wait:
        view = fleet_view.drain_plan if dry_run else fleet_view.drain_view
        session.show(plain(response.drain), view(response.drain))
        return 0
    last = await _followed(session, response.drain.id)
    if session.is_json:
        session.show(plain(last), "")
    else:
        session.say(fleet_view.drain_view(last))
    return 0 if last.state == pb.DrainState.DRAIN_STATE_DONE else 1


async def _followed(session: Session, name: str) -> pb.Drain:
    """Follows a drain to its end, a line for each change; outlives the control plane."""
    last, said = pb.Drain(), ""
    updates = session.watch(
        session.fleet.WatchDrain,
        pb.WatchDrainRequest(id=name),
        pb.WatchDrainResponse,
        until=lambda update: _has_ended(update.drain),
        on_away=lambda error: session.note(f"{error.message}; trying again"),
    )
    async with aclosing(updates) as messages:
        async for update in messages:
            last = update.drain
            line = fleet_view.drain_line(last)
            if line != said and not session.is_json:
                session.line(None, line)
            said = line
    return last


def _has_ended(drain: pb.Drain) -> bool:
    return drain.state != pb.DrainState.DRAIN_STATE_RUNNING


async def drains(
    session: Session,
    name: Annotated[
        str, typer.Argument(metavar="DRAIN", help="One: its id, host or address.")
    ] = "",
) -> None:
    """Show drains, newest first, or one with what it moved and why the rest waits."""
    if name:
        one = await session.call(
            session.fleet.GetDrain, pb.GetDrainRequest(id=name), pb.GetDrainResponse
        )
        session.show(plain(one.drain), fleet_view.drain_view(one.drain))
        return
    response = await session.call(
        session.fleet.ListDrains, pb.ListDrainsRequest(), pb.ListDrainsResponse
    )
    found = list(response.drains)
    session.show({"drains": [plain(each) for each in found]}, fleet_view.drains_table(found))


async def drain_cancel(session: Session, name: DrainName) -> None:
    """End a drain: begin no further move, and let spares be placed there again.

    A move under way goes on to its end.
    """
    response = await session.call(
        session.fleet.CancelDrain, pb.CancelDrainRequest(id=name), pb.CancelDrainResponse
    )
    session.show(plain(response.drain), fleet_view.drain_view(response.drain))
