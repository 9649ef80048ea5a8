"""How a control plane is started: its command line, and where its state is by default."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

DEFAULT_ADDRESS = "127.0.0.1:55400"
DEFAULT_VMMD = "127.0.0.1:55401"
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
  grpcurl -plaintext 127.0.0.1:55400 list

vmmd may be started later: calls that need it say so until it is there. SIGTERM ends the control
plane in order; replacements under way go on when it is started again with the same --data."""

_TLS_TEXT = """\
The control plane asks a downstairs what it is before it becomes a member. Where a region's request
names TLS files it does so over TLS: with the files given here, or else with those of the request,
which must then be readable on this host too. Where it names none, in plain text. Spares are
registered over TLS if files are given here, in plain text if not."""


@dataclass(frozen=True, slots=True)
class Config:
    """One start of the daemon. `downstairs_tls` holds the paths given with `TLS_FLAGS`; `metrics`
    is where they are read, or empty; `log_json` None means "unless stderr is a terminal"."""

    address: str
    vmmd: str
    data: Path
    downstairs_tls: tuple[str | None, str | None, str | None]
    metrics: str
    log_level: str
    log_json: bool | None


def default_data(environment: Mapping[str, str]) -> Path:
    """The XDG state directory's place for the control plane."""
    state = environment.get("XDG_STATE_HOME") or ""
    # The specification asks to ignore a relative path.
    base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return base / "stairwell" / "controlplane"


def parse(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Config:
    """The configuration of a command line; exits with usage when it makes no sense."""
    data = default_data(environment)
    parser = argparse.ArgumentParser(
        prog="controlplane",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"stairwell {metadata.version('stairwell')}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
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
    run.add_argument(
        "--data", type=Path, default=data, metavar="DIR",
        help=f"directory of the state, made when missing (default: {data})",
    )  # fmt: skip
    run.add_argument(
        "--metrics", default="", metavar="ADDR",
        help="serve metrics to Prometheus there, as 127.0.0.1:55480 (default: nowhere)",
    )  # fmt: skip
    _add_tls(run)
    _add_logging(run)
    parsed = parser.parse_args(arguments)
    return Config(
        address=parsed.address,
        vmmd=parsed.vmmd,
        data=parsed.data,
        downstairs_tls=(
            parsed.downstairs_cert_pem,
            parsed.downstairs_key_pem,
            parsed.downstairs_root_cert_pem,
        ),
        metrics=parsed.metrics,
        log_level=parsed.log_level,
        log_json={"auto": None, "text": False, "json": True}[parsed.log_format],
    )


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
