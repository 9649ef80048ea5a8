"""The flags and variables of TLS, the same for all daemons and the client."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stairlib.model.call_rate import CallRate
from stairlib.model.errors import InvalidRequestError

if TYPE_CHECKING:
    from stairlib.rpc.server import Security, TokenPort
    from stairlib.rpc.tls import TlsFiles

# In the order of `tls_files`.
FLAGS: Final = ("--tls-cert", "--tls-key", "--tls-ca")
# Not those of the client: a user who has these in the shell starts no daemon with them.
DAEMON_VARIABLES: Final = (
    "STAIRWELL_DAEMON_TLS_CERT",
    "STAIRWELL_DAEMON_TLS_KEY",
    "STAIRWELL_DAEMON_TLS_CA",
)
# By the destinations of `add_tls`.
TLS_VARIABLES: Final[Mapping[str, str]] = dict(
    zip(("tls_cert", "tls_key", "tls_ca"), DAEMON_VARIABLES, strict=True)
)
_GUIDE: Final = f"""\
All three or none; also taken from {DAEMON_VARIABLES[0]}, _KEY and _CA. With them this daemon
speaks TLS and nothing else, takes callers whose certificates are signed by the authority and name
a role, and shows its own to others. A file that changes is read again. `stairwell pki init` makes
all that a cluster needs. Without them it speaks plain text, and on this host only."""


_RATE_GUIDE: Final = """\
Who calls more often is told RESOURCE_EXHAUSTED, and when to try again. A caller is a certificate's
or a token's name, else the address it comes from. Daemons among themselves are not counted, nor is
health."""
# One processor serves some thousand small calls a second: half of that is nobody's share.
CALLS_PER_SECOND: Final = 500.0
CALLS_BURST: Final = 1000
RATE_MIN: Final = 0.1
RATE_MAX: Final = 1e6


def add_tls(parser: argparse.ArgumentParser) -> None:
    """--tls-*, --insecure."""
    group = parser.add_argument_group("TLS", _GUIDE)
    texts = (
        "this daemon's certificate: for the host that others reach it by, and the role daemon",
        "its private key, without a passphrase",
        "the authority that the certificates of others must be signed by",
    )
    for flag, text in zip(FLAGS, texts, strict=True):
        group.add_argument(flag, metavar="FILE", help=text)
    add_insecure(group)


def add_insecure(group: argparse._ArgumentGroup) -> None:
    """--insecure alone."""
    group.add_argument(
        "--insecure",
        action="store_true",
        help="speak plain text over networks too: whoever can connect may do everything",
    )


def add_tokens(parser: argparse.ArgumentParser) -> None:
    """--tokens, --tokens-listen."""
    group = parser.add_argument_group(
        "people without a certificate (with TLS)",
        "A second port takes bearer tokens instead. `stairwell pki token` makes them.",
    )
    group.add_argument("--tokens", metavar="FILE", type=Path, help="the file with their digests")
    group.add_argument(
        "--tokens-listen", metavar="ADDR", default="", help="where, as 0.0.0.0:55402"
    )


def add_call_rate(parser: argparse.ArgumentParser) -> None:
    """--calls-per-second, --calls-burst."""
    group = parser.add_argument_group("how often a caller may call", _RATE_GUIDE)
    group.add_argument(
        "--calls-per-second", type=_rate, default=CALLS_PER_SECOND, metavar="N",
        help="calls of one caller in the long run; 0 is no limit (default: %(default)g)",
    )  # fmt: skip
    group.add_argument(
        "--calls-burst", type=_burst, default=CALLS_BURST, metavar="N",
        help="of these, so many may come at once (default: %(default)s)",
    )  # fmt: skip


def call_rate(options: argparse.Namespace) -> CallRate | None:
    """What the flags of `add_call_rate` come to; None is no limit."""
    if not options.calls_per_second:
        return None
    return CallRate(options.calls_per_second, options.calls_burst)


def _rate(text: str) -> float:
    """A rate; argparse shows the message."""
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not (rate == 0 or RATE_MIN <= rate <= RATE_MAX):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a rate of {RATE_MIN:g} to {RATE_MAX:g} calls a second, or 0"
        )
    return rate


def _burst(text: str) -> int:
    """How many at once; argparse shows the message."""
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= RATE_MAX):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {RATE_MAX:g}")
    return int(text)


def daemon_files(
    given: tuple[str | None, str | None, str | None],
    names: tuple[str, str, str] = FLAGS,
    environment: Mapping[str, str] = os.environ,
) -> TlsFiles | None:
    """The daemon's files: of the flags `names`, or else of the variables; None for plain text.
    InvalidRequestError TLS_INCOMPLETE when some are missing."""
    from stairlib.rpc.tls import tls_files

    if any(path is not None for path in given):
        return tls_files(*given, names=names)
    cert, key, root = (environment.get(name) or None for name in DAEMON_VARIABLES)
    return tls_files(cert, key, root, DAEMON_VARIABLES)


def token_port(tokens: Path | None, listen: str, files: TlsFiles | None) -> TokenPort | None:
    """The port for tokens, if one is asked for. InvalidRequestError when part of it is missing."""
    from stairlib.rpc.server import TokenPort
    from stairlib.rpc.tokens import TokenBook
    from stairlib.runtime.addresses import parse_address

    if tokens is None and not listen:
        return None
    if tokens is None or not listen:
        raise InvalidRequestError("--tokens and --tokens-listen go together: give both")
    if files is None:
        raise InvalidRequestError(
            "--tokens takes --tls-cert, --tls-key and --tls-ca: a token in plain text is "
            "everybody's",
            reason="PLAIN_TEXT",
        )
    address = parse_address(listen)
    if address.is_unix:
        raise InvalidRequestError("--tokens-listen takes HOST:PORT: a unix socket needs no tokens")
    return TokenPort(address, TokenBook(tokens))


def security(options: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Security:
    """What the flags of `add_tls` and `add_tokens` come to: files that will do, or none."""
    from stairlib.rpc.server import Security

    given = (options.tls_cert, options.tls_key, options.tls_ca)
    files = daemon_files(given, environment=environment)
    if files is not None:
        files.check(server=True)
    tokens = token_port(
        getattr(options, "tokens", None), getattr(options, "tokens_listen", ""), files
    )
    return Security(files, options.insecure, tokens, call_rate(options))
