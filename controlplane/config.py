"""How a control plane is started: its command line, and where its state is by default."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from controlplane.core.leases import LEASE_SECONDS, LEASE_SECONDS_MAX, LEASE_SECONDS_MIN
from controlplane.store.place import Place, database_url
from controlplane.store.sealing import ENVIRONMENT as KEY_ENVIRONMENT
from stairlib.model.errors import InvalidRequestError
from stairlib.model.settings import SecretText, SecretUrl, Setting
from stairlib.rpc.flags import TLS_VARIABLES, add_call_rate, add_tls, add_tokens
from stairlib.runtime.command_line import (
    TELEMETRY_VARIABLES,
    command_line_settings,
    variable_settings,
)

DEFAULT_ADDRESS = "127.0.0.1:55400"
DEFAULT_VMMD = "127.0.0.1:55401"
DATABASE_ENVIRONMENT = "STAIRWELL_DATABASE"
TLS_FLAGS = ("--downstairs-cert-pem", "--downstairs-key-pem", "--downstairs-root-cert-pem")

_DESCRIPTION = """\
Keeps what users asked for: instances, their disks, the construction request recorded for each
disk, and the replacements of members. Clients (stairwell, grpcurl) talk to it; it talks to vmmd.
It never touches block data, and machines go on while it is away."""

_EXAMPLES = """\
examples:
  controlplane run
  controlplane run 127.0.0.1:55400 --vmmd 127.0.0.1:55401
  controlplane run 127.0.0.1:0 --data /var/lib/stairwell    any free port; it prints which
  controlplane run --database postgresql://me@db/stairwell --secret-key-file /etc/stairwell.key
  controlplane check-database --data /var/lib/stairwell     its schema version, its key, who uses it
  grpcurl -plaintext 127.0.0.1:55400 list

vmmd may be started later: calls that need it say so until it is there. SIGTERM ends the control
plane in order; replacements under way go on when it is started again with the same --data."""

_TLS_TEXT = """\
The control plane asks a downstairs what it is before it becomes a member. Where a region's request
names TLS files it does so over TLS: with the files given here, or else with its own (--tls-cert),
or else with those of the request, which must then be readable on this host too. Where it names
none, in plain text. Spares are registered over TLS if it has files, in plain text if not."""


_DATABASE_TEXT = f"""\
By default the state is in SQLite, in the directory of --data, which one control plane uses at a
time. In a PostgreSQL database several share the work: each record is driven by one of them, and
what a dead one drove is taken over when its lease has ended. The URL may also be in
{DATABASE_ENVIRONMENT}, where `ps` does not show it, and its password in PGPASSFILE. Requests that
hold secrets are stored encrypted; with PostgreSQL that needs a key, the same for all control
planes, in a file or in {KEY_ENVIRONMENT} (64 hexadecimal digits: openssl rand -hex 32)."""

_CHECK_TEXT = """\
Says which schema version is stored and which this program needs, whether the secret key is the
right one, how much is recorded, and which control planes hold leases. Changes nothing, and may be
asked while control planes run. The exit status is 1 when a control plane would not start."""

_MIGRATE_TEXT = """\
Brings the stored schema to this program's version, as `run` does at its start. Stop the control
planes and make a backup first; a schema that is newer than this program is refused."""


@dataclass(frozen=True, slots=True)
class Config:
    """One start of the program. `command` is run, check-database or migrate-database; `console` is
    where the web console is, or empty;
    `downstairs_tls` holds the paths given with `TLS_FLAGS`; `metrics` is where they are read, or
    empty; `security` has the flags of `stairlib.rpc.flags`; `log_json` None means "unless stderr is
    a terminal"; `settings` is what may be told of all that."""

    command: str
    address: str
    vmmd: str
    place: Place
    downstairs_tls: tuple[str | None, str | None, str | None]
    metrics: str
    log_level: str
    log_json: bool | None
    as_json: bool = False
    security: argparse.Namespace | None = None
    console: str = ""
    settings: tuple[Setting, ...] = ()

    @property
    def data(self) -> Path:
        """The directory of the state."""
        return self.place.directory


def default_data(environment: Mapping[str, str]) -> Path:
    """The XDG state directory's place for the control plane."""
    state = environment.get("XDG_STATE_HOME") or ""
    # The specification asks to ignore a relative path.
    base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return base / "stairwell" / "controlplane"


def parse(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Config:
    """The configuration of a command line; exits with usage when it makes no sense."""
    commands = parser(environment)
    config = _config(commands.parse_args(arguments), environment, commands)
    return replace(config, settings=tuple(_settings(arguments, environment)))


def _settings(arguments: Sequence[str], environment: Mapping[str, str]) -> list[Setting]:
    """What is in effect, without secrets."""
    return [
        *command_line_settings(
            lambda: parser(environment),
            arguments,
            environment,
            {"database": DATABASE_ENVIRONMENT, **TLS_VARIABLES},
        ),
        *variable_settings(environment, {KEY_ENVIRONMENT: SecretText, **TELEMETRY_VARIABLES}),
    ]


def parser(environment: Mapping[str, str] = os.environ) -> argparse.ArgumentParser:
    """Every command with its flags."""
    top = argparse.ArgumentParser(
        prog="controlplane",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument(
        "--version", action="version", version=f"stairwell {metadata.version('stairwell')}"
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="serve until SIGTERM",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    run.add_argument(
        "address", nargs="?", default=DEFAULT_ADDRESS, metavar="ADDR",
        help="where to listen, host:port, with port 0 for any free one (default: %(default)s)",
    )  # fmt: skip
    run.add_argument(
        "--vmmd", default=DEFAULT_VMMD, metavar="ADDR",
        help="where vmmd listens (default: %(default)s)",
    )  # fmt: skip
    _add_database(run, environment)
    run.add_argument(
        "--lease-seconds", type=_lease_seconds, default=LEASE_SECONDS, metavar="N",
        help="with PostgreSQL: how long after its last word a control plane that died is waited for"
        " before another one takes over what it drove (default: %(default)g)",
    )  # fmt: skip
    run.add_argument(
        "--metrics", default="", metavar="ADDR",
        help="serve metrics to Prometheus there, as 127.0.0.1:55482 (default: nowhere)",
    )  # fmt: skip
    run.add_argument(
        "--console", default="", metavar="ADDR",
        help="serve the web console there, as 127.0.0.1:55480 (default: nowhere; needs the extra"
        " console)",
    )  # fmt: skip
    add_tls(run)
    add_tokens(run)
    add_call_rate(run)
    _add_tls(run)
    _add_logging(run)
    for name, text, said in (
        ("check-database", _CHECK_TEXT, "say what is stored, and whether it can be used"),
        ("migrate-database", _MIGRATE_TEXT, "bring the stored schema to this version"),
    ):
        command = commands.add_parser(name, help=said, description=text, allow_abbrev=False)
        _add_database(command, environment)
        command.add_argument(
            "--output", choices=("text", "json"), default="text",
            help="how the answer is written (default: %(default)s)",
        )  # fmt: skip
    return top


def _config(
    parsed: argparse.Namespace, environment: Mapping[str, str], parser: argparse.ArgumentParser
) -> Config:
    url = parsed.database or environment.get(DATABASE_ENVIRONMENT) or ""
    if url:
        try:
            database_url(url)
        except InvalidRequestError as error:
            parser.error(error.message)
    runs = parsed.command == "run"
    place = Place(
        parsed.data,
        url=url,
        key_file=parsed.secret_key_file,
        key_text=environment.get(KEY_ENVIRONMENT) or "",
        lease_seconds=parsed.lease_seconds if runs else LEASE_SECONDS,
    )
    if not runs:
        return Config(
            parsed.command, "", "", place, (None, None, None), "", "warning", None,
            as_json=parsed.output == "json",
        )  # fmt: skip
    return Config(
        command=parsed.command,
        address=parsed.address,
        vmmd=parsed.vmmd,
        place=place,
        downstairs_tls=(
            parsed.downstairs_cert_pem,
            parsed.downstairs_key_pem,
            parsed.downstairs_root_cert_pem,
        ),
        metrics=parsed.metrics,
        log_level=parsed.log_level,
        log_json={"auto": None, "text": False, "json": True}[parsed.log_format],
        security=parsed,
        console=parsed.console,
    )


def _lease_seconds(text: str) -> float:
    """A lease's time; argparse shows the message."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not LEASE_SECONDS_MIN <= seconds <= LEASE_SECONDS_MAX:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time of {LEASE_SECONDS_MIN:g} to {LEASE_SECONDS_MAX:g} seconds"
        )
    return seconds


def _add_database(command: argparse.ArgumentParser, environment: Mapping[str, str]) -> None:
    data = default_data(environment)
    group = command.add_argument_group("where the state is", _DATABASE_TEXT)
    group.add_argument(
        "--data", type=Path, default=data, metavar="DIR",
        help=f"directory of the state, made when missing (default: {data})",
    )  # fmt: skip
    group.add_argument(
        "--database", default="", metavar="URL", type=SecretUrl,
        help="the PostgreSQL database to keep it in, as postgresql://USER@HOST:PORT/NAME",
    )  # fmt: skip
    group.add_argument(
        "--secret-key-file", type=Path, default=None, metavar="FILE",
        help="the key that stored secrets are encrypted with (default: secret.key in --data; none"
        " with --database)",
    )  # fmt: skip


def _add_tls(run: argparse.ArgumentParser) -> None:
    group = run.add_argument_group("TLS towards the downstairs (all three or none)", _TLS_TEXT)
    texts = (
        "certificate to show the downstairs",
        "its private key, without a passphrase",
        "what the certificates of the downstairs must be signed by",
    )
    for flag, text in zip(TLS_FLAGS, texts, strict=True):
        group.add_argument(flag, metavar="FILE", help=text)


def _add_logging(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info",
        help="least severe events that are logged, to stderr (default: %(default)s)",
    )  # fmt: skip
    run.add_argument(
        "--log-format", choices=("auto", "text", "json"), default="auto",
        help="auto is text on a terminal and JSON lines elsewhere (default: %(default)s)",
    )  # fmt: skip
