"""What the command line asks for, as checked values. Errors are InvalidRequestError naming the
flag."""

from __future__ import annotations

import argparse
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from downstaird.core.clone_plan import Expected
from downstaird.faults import FaultPlan
from stairlib.model.call_rate import CallRate
from stairlib.model.cipher import CIPHERS, DEFAULT_CIPHER
from stairlib.model.errors import FieldViolation, InvalidRequestError
from stairlib.model.geometry import Geometry
from stairlib.model.settings import Setting
from stairlib.runtime.addresses import Address

if TYPE_CHECKING:
    from stairlib.rpc.tls import TlsFiles

_FLAGS = {
    "block_size": "--block-size",
    "blocks_per_extent": "--extent-size",
    "extent_count": "--extent-count",
}


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """A region to be. `cipher` empty: the blocks will not be encrypted."""

    directory: Path
    id: uuid.UUID
    geometry: Geometry
    cipher: str


@dataclass(frozen=True, slots=True)
class CloneOptions:
    """A region to be, as a copy of the one at `source` ("host:port")."""

    directory: Path
    id: uuid.UUID
    source: str
    expected: Expected
    tls: TlsFiles | None = None


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to serve a region. `create` is set when it may be made on the first start. `data_port`
    None: the port after the gRPC one if it is free, else any. `advertise` empty: worked out for
    each client. `tls` None: plain text, to other hosts only if
    `insecure`. `snapshot`: serve that instead of the region itself. `metrics`: where
    they are read, as "host:port"; empty for nowhere. `settings` is what may be told of all that,
    `calls` how often each caller may call."""

    directory: Path
    address: Address
    data_port: int | None
    advertise: str
    read_only: bool
    faults: FaultPlan
    create: CreateOptions | None
    tls: TlsFiles | None = None
    snapshot: str = ""
    insecure: bool = False
    metrics: str = ""
    settings: tuple[Setting, ...] = ()
    calls: CallRate | None = None


def checked_uuid(text: str | None, flag: str) -> uuid.UUID:
    """The UUID given with `flag`."""
    if not text:
        raise wrong(flag, "is needed: the UUID that names the region for ever")
    try:
        return uuid.UUID(text)
    except ValueError:
        raise wrong(flag, f"{text!r} is not a UUID") from None


def checked_geometry(block_size: int, extent_size: int, extent_count: int) -> Geometry:
    """A geometry within the limits; the error names every flag that is not."""
    geometry = Geometry(block_size, extent_size, extent_count)
    problems = geometry.problems()
    if problems:
        raise InvalidRequestError(
            "; ".join(f"{_FLAGS[field]}: {rule}" for field, rule in problems),
            tuple(FieldViolation(_FLAGS[field], rule, "OUT_OF_RANGE") for field, rule in problems),
        )
    return geometry


def checked_cipher(cipher: str | None, *, encrypted: bool) -> str:
    """The suite that --encrypted and --cipher ask for together; empty for none."""
    if cipher is None:
        return DEFAULT_CIPHER if encrypted else ""
    if not encrypted:
        raise wrong("--cipher", "is for regions with encrypted blocks: add --encrypted")
    return cipher


def add_cipher(parser: argparse._ActionsContainer, encrypted: str) -> None:
    """The flags that `checked_cipher` judges; `encrypted` is the help of --encrypted."""
    parser.add_argument("--encrypted", action="store_true", help=encrypted)
    parser.add_argument(
        "--cipher",
        choices=CIPHERS,
        help="how they are encrypted, the same in all regions of a set: aes-256-gcm is several "
        f"times quicker; with --encrypted (default {DEFAULT_CIPHER})",
    )


def wrong(flag: str, rule: str) -> InvalidRequestError:
    """The error for one flag."""
    return InvalidRequestError(f"{flag} {rule}", (FieldViolation(flag, rule),))
