"""`cluster`: a whole cluster of local processes, from one file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from controlplane.cli.command import command
from controlplane.cli.failure import CommandError
from controlplane.cli.render import new_table
from controlplane.cli.session import Session

if TYPE_CHECKING:
    from controlplane.cli.cluster.house import House, Look

DEFAULT_FILE = Path("cluster.toml")

cluster = typer.Typer(
    no_args_is_help=True,
    help="A cluster of local processes, as docker-compose.yml has one of containers: the control "
    "plane, vmmd and downstairs.\n\n"
    "`stairwell cluster init` writes a file that says everything, `stairwell cluster up` starts "
    "it, and `stairwell cluster down` leaves nothing running.",
)

File = Annotated[
    Path, typer.Option("--file", "-f", metavar="FILE.toml", help="What the cluster is.")
]


def add_to(app: typer.Typer) -> None:
    """Registers this module's commands."""
    command(cluster, "init")(init)
    command(cluster, "up")(up)
    command(cluster, "status")(status)
    command(cluster, "logs")(logs)
    command(cluster, "down")(down)
    app.add_typer(cluster, name="cluster")


async def init(session: Session, file: File = DEFAULT_FILE) -> None:
    """Write a file with every key, what it is for and what it is when left out."""
    from controlplane.cli.cluster.plan import TEMPLATE

    try:
        with file.open("x") as new:
            new.write(TEMPLATE)
    except FileExistsError:
        raise CommandError(f"{file} is there already", "name another one with --file") from None
    except OSError as error:
        raise CommandError(f"cannot write {file}: {error.strerror}", "see --file") from None
    session.show(
        {"file": str(file)}, f"{file} written; start it: stairwell cluster up --file {file}"
    )


async def up(
    session: Session,
    file: File = DEFAULT_FILE,
    netns: Annotated[
        bool,
        typer.Option(
            "--netns",
            help="Each program in a network namespace of its own, with its own address; as root.",
        ),
    ] = False,
) -> None:
    """Start every program that does not run, and wait until all of them serve.

    Regions and state are made at the first start and kept after it. With --netns each program is a
    host of its own, whose cable can be pulled: see `status`. Where a program does not come up, what
    was started is ended again, and the end of its log is shown.
    """
    from controlplane.cli.cluster.house import next_steps

    house = _house(file)
    with house.locked():
        await house.up(netns=netns, told=session.note)
        looks = await house.look()
    steps = next_steps(house)
    session.show(_plain(house, looks, steps), _table(looks))
    if steps and not session.is_json:
        session.say("next:\n" + "\n".join(f"  {step}" for step in steps))


async def status(session: Session, file: File = DEFAULT_FILE) -> int:
    """Show every program: where it listens, and whether it serves. Exit 1 unless all do."""
    house = _house(file)
    looks = await house.look()
    session.show(_plain(house, looks), _table(looks))
    if house.netns and not session.is_json:
        switch = house.networks.switch
        session.say(f"pull a cable: ip -n {switch} link set PROGRAM down; and plug it in: up")
    return 0 if all(look.health == "SERVING" for look in looks) else 1


async def logs(
    session: Session,
    name: Annotated[
        str | None, typer.Argument(metavar="[PROGRAM]", help="As `status` names it; else of all.")
    ] = None,
    file: File = DEFAULT_FILE,
    lines: Annotated[int, typer.Option("--lines", min=1, max=100_000, help="So many last.")] = 40,
) -> None:
    """Show the last lines that the programs have logged."""
    from controlplane.cli.daemons import condensed

    house = _house(file)
    names = house.plan.names if name is None else (name,)
    if name is not None and name not in house.plan.names:
        raise CommandError(
            f"there is no program {name!r}", f"there are {', '.join(house.plan.names)}"
        )
    found = {}
    for each in names:
        try:
            text = house.log(each).read_text(errors="replace")
        except OSError:
            text = ""
        found[each] = text.splitlines()[-lines:]
    shown = [f"{each}: {condensed(line)}" for each, last in found.items() for line in last]
    session.show(found, "\n".join(shown) if shown else "nothing was logged")


async def down(
    session: Session,
    file: File = DEFAULT_FILE,
    volumes: Annotated[
        bool, typer.Option("--volumes", help="Remove regions, state, logs and certificates too.")
    ] = False,
) -> None:
    """End every program and remove the networks; without --volumes what is stored is kept."""
    house = _house(file)
    if not house.leftover():
        raise CommandError(
            f"there is no cluster in {house.folder}", "`stairwell cluster up` makes one"
        )
    with house.locked():
        killed = await house.down(volumes=volumes)
    kept = "" if volumes else f"; what is stored stays in {house.folder}"
    told = [f"down{kept}"]
    told += [f"{name} did not end in time and was killed" for name in killed]
    session.show({"killed": killed, "volumes_removed": volumes}, "\n".join(told))


def _house(file: Path) -> House:
    from controlplane.cli.cluster.house import House
    from controlplane.cli.cluster.plan import parse_plan

    if sys.platform != "linux":
        raise CommandError(
            "a cluster of local processes needs Linux", "see docs/compose.md for containers"
        )
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise CommandError(
            f"cannot read {file}: {why}", "`stairwell cluster init` writes one"
        ) from None
    return House(parse_plan(text, file))


def _plain(house: House, looks: list[Look], steps: list[str] | None = None) -> dict[str, object]:
    programs = []
    for look in looks:
        one: dict[str, object] = {
            "name": look.name,
            "address": look.address,
            "pid": look.pid,
            "health": look.word,
            "log": str(look.log),
        }
        if house.netns:
            one["namespace"] = house.networks.namespace(look.name)
        programs.append(one)
    found: dict[str, object] = {"directory": str(house.folder), "programs": programs}
    if house.netns:
        found["switch"] = house.networks.switch
    if steps is not None:
        found["next"] = steps
    return found


def _table(looks: list[Look]) -> Table:
    table = new_table("PROGRAM", "ADDRESS", "STATE", "PID", "LOG")
    for look in looks:
        table.add_row(look.name, look.address, look.word, str(look.pid or "-"), str(look.log))
    return table
