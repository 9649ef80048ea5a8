"""`pki`: a cluster's certificate authority, the certificates of its daemons and people, tokens.

All of it is files in one folder; no daemon is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from controlplane.cli.command import command
from controlplane.cli.failure import CommandError
from controlplane.cli.render import new_table
from controlplane.cli.session import Session
from stairlib.rpc.access import Role
from stairlib.rpc.tokens import add_line, checked_name, new_token

if TYPE_CHECKING:
    from stairlib.rpc.authority import Issued, Wish

AUTHORITY_DAYS = 3650
# A year and a month: renewed once a year, with time to spare.
CERTIFICATE_DAYS = 397
TOKEN_DAYS = 90
# The largest dates certificates can hold, with centuries to spare.
DAYS_MAX = 36_500

pki = typer.Typer(
    no_args_is_help=True,
    help="Certificates and tokens of a cluster: who its daemons and people are.\n\n"
    "`stairwell pki init` makes an authority and a certificate for each daemon, for an operator "
    "and for a viewer. Give each host ca.pem and the two files of its daemon, and keep ca.key "
    "where nobody works.",
)

Folder = Annotated[
    Path, typer.Option("--dir", metavar="DIR", envvar="STAIRWELL_PKI", help="Where all of it is.")
]
Days = Annotated[
    int, typer.Option("--days", min=1, max=DAYS_MAX, help="How long certificates are valid.")
]


def add_to(app: typer.Typer) -> None:
    """Registers this module's commands."""
    command(pki, "init")(init)
    command(pki, "issue")(issue)
    command(pki, "renew")(renew)
    command(pki, "show")(show)
    command(pki, "token")(token)
    app.add_typer(pki, name="pki")


async def init(
    session: Session,
    daemons: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=HOST[,HOST...]]...",
            help="Daemons and what they are reached by, as vmmd=vm1.example,10.0.0.7.  "
            "[default: controlplane, vmmd and downstairs on this host]",
        ),
    ] = None,
    folder: Folder = Path("pki"),
    days: Days = CERTIFICATE_DAYS,
    authority_days: Annotated[
        int, typer.Option("--ca-days", min=1, max=DAYS_MAX, help="How long the authority is valid.")
    ] = AUTHORITY_DAYS,
) -> None:
    """Make an authority, and certificates for daemons, an operator and a viewer."""
    from stairlib.rpc.authority import Authority, check_wish, default_wishes

    wishes = default_wishes(()) if not daemons else _wishes(daemons)
    for wish in wishes:
        check_wish(wish)
    authority = Authority.found(folder, authority_days)
    made = [authority.issue(wish, days) for wish in wishes]
    session.show(_plain(authority.issued()), _table(made))
    if session.is_json:
        return
    session.say(
        f"authority {authority.root}; its key {folder}/ca.key makes anybody a daemon: keep it off "
        "the daemons' hosts"
    )
    for who, program, name in (("daemons", "", "NAME"), ("people", "stairwell ", "operator")):
        flags = f"--tls-cert {folder}/{name}.pem --tls-key {folder}/{name}.key"
        session.say(f"{who}: {program}--tls-ca {authority.root} {flags}")


async def issue(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the daemon or person.")],
    role: Annotated[
        Role, typer.Option("--role", help="A viewer looks, an operator changes; daemons serve.")
    ],
    hosts: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="HOST", help="What a daemon is reached by; again for more."),
    ] = None,
    folder: Folder = Path("pki"),
    days: Days = CERTIFICATE_DAYS,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the one of that name.")
    ] = False,
) -> None:
    """Issue one certificate, with a key of its own."""
    from stairlib.rpc.authority import Authority, Wish

    made = Authority(folder).issue(Wish(name, role, tuple(hosts or ())), days, replace=replace)
    session.show(_plain([made]), _table([made]))


async def renew(
    session: Session,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="All of them when left out.")
    ] = None,
    folder: Folder = Path("pki"),
    days: Days = CERTIFICATE_DAYS,
) -> None:
    """Replace certificates by ones like them, with new keys, valid from now on."""
    from stairlib.rpc.authority import Authority

    authority = Authority(folder)
    chosen = names or [one.name for one in authority.issued() if one.role is not None]
    made = [authority.renew(name, days) for name in chosen]
    session.show(_plain(made), _table(made))


async def show(session: Session, folder: Folder = Path("pki")) -> None:
    """List the certificates that are there, and when they run out."""
    from stairlib.rpc.authority import Authority

    found = Authority(folder).issued()
    session.show(_plain(found), _table(found))


async def token(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the person.")],
    role: Annotated[Role, typer.Option("--role", help="viewer or operator.")] = Role.VIEWER,
    folder: Folder = Path("pki"),
    days: Annotated[
        int, typer.Option("--days", min=1, max=DAYS_MAX, help="How long it is taken.")
    ] = TOKEN_DAYS,
) -> None:
    """Make a bearer token for a person who has no certificate.

    The token is written to NAME.token, for that person alone; its digest is added to the file
    `tokens`, which the control plane is given with --tokens. Whoever loses one is taken out of that
    file by deleting the line: it is read again at once.
    """
    from stairlib.rpc.authority import TOKENS, write_file

    if role is Role.DAEMON:
        raise CommandError("a daemon has a certificate, no token", "give --role viewer or operator")
    target, book = folder / f"{checked_name(name)}.token", folder / TOKENS
    if target.exists():
        raise CommandError(
            f"{target} is there already",
            f"delete it, and the line of {name} in {book}, if it is not to be used any more",
        )
    secret, line = new_token(name, role, days, datetime.now(UTC).date())
    if not folder.is_dir():
        raise CommandError(f"{folder} is no folder", "`stairwell pki init` makes it")
    # The token first: a digest of one that nobody has only makes the file longer.
    write_file(target, secret.encode() + b"\n", 0o600)
    add_line(book, line)
    last = line.split()[-1]
    session.show(
        {"name": name, "role": str(role), "last_day": last, "file": str(target)},
        f"{target}: {role} until {last}; its digest is in {book}\n"
        f"control plane: --tokens {book} --tokens-listen 0.0.0.0:55402\n"
        f"{name}: stairwell --port 55402 --tls-ca {folder}/ca.pem --token-file {target} list",
    )


def _wishes(daemons: Sequence[str]) -> list[Wish]:
    from stairlib.rpc.authority import Wish

    wishes = []
    for text in daemons:
        name, _, hosts = text.partition("=")
        wishes.append(Wish(name, Role.DAEMON, tuple(filter(None, hosts.split(",")))))
    wishes += [Wish("operator", Role.OPERATOR), Wish("viewer", Role.VIEWER)]
    names = [wish.name for wish in wishes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise CommandError(f"{twice} is named twice", "give each daemon one name")
    return wishes


def _plain(found: Sequence[Issued]) -> dict[str, object]:
    return {
        "certificates": [
            {
                "name": one.name,
                "role": str(one.role) if one.role is not None else "authority",
                "hosts": list(one.hosts),
                "valid_until": one.last.isoformat(),
                "certificate": str(one.certificate),
                "key": str(one.key),
            }
            for one in found
        ]
    }


def _table(found: Sequence[Issued]) -> Table:
    table = new_table("NAME", "ROLE", "VALID UNTIL", "HOSTS")
    for one in found:
        role = str(one.role) if one.role is not None else "authority"
        table.add_row(one.name, role, _until(one.last), ", ".join(one.hosts) or "-")
    return table


def _until(last: datetime) -> str:
    left = (last - datetime.now(UTC)).days
    return f"{last:%Y-%m-%d}" + (" (has run out)" if left < 0 else f" ({left} days)")
