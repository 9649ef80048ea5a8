"""The bytes of the intent file: lines of JSON that a person can read, and a checksum.

    stairwell agent intent 1          what it is, and the format's version
    xxh3 <16 hex digits>              of all bytes after this line
    {"asked": ..., "last_port": ...}
    {"id": ..., "state": ..., ...}    one line per region, with the snapshots asked of it

The checksum is what counts: a file that was cut off or changed by hand is refused.
"""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import Any
from uuid import UUID

import xxhash

from downstaird.agent.core.intent import Intent, Record, Wanted
from downstaird.agent.core.region_states import RegionState
from downstaird.agent.core.snapshot_wishes import Wish, WishState
from stairlib.model.errors import DataError
from stairlib.model.geometry import Geometry

VERSION = 1
_TITLE = "stairwell agent intent "


def encode(intent: Intent) -> bytes:
    """The whole file."""
    lines = [json.dumps({"asked": intent.asked, "last_port": intent.last_port})]
    records = sorted(intent.records.values(), key=lambda record: record.number)
    lines += [json.dumps(_fields(record)) for record in records]
    body = "".join(f"{line}\n" for line in lines).encode()
    return f"{_TITLE}{VERSION}\nxxh3 {xxhash.xxh3_64_hexdigest(body)}\n".encode() + body


def decode(raw: bytes, name: str) -> Intent:
    """What a file of that name holds. DataError INTENT_VERSION for a newer format's, INTENT_DAMAGED
    for what is none."""
    title, _, rest = raw.partition(b"\n")
    version = title.decode(errors="replace").removeprefix(_TITLE)
    if not title.startswith(_TITLE.encode()) or not version.isdecimal():
        raise _damaged(name, "its first line is not that of an intent file")
    if int(version) != VERSION:
        raise DataError(
            f"{name} has version {version}; this program reads version {VERSION}: run the newer "
            "one",
            reason="INTENT_VERSION",
            file=name,
        )
    seal, _, body = rest.partition(b"\n")
    if seal != f"xxh3 {xxhash.xxh3_64_hexdigest(body)}".encode():
        raise _damaged(name, "its checksum does not match")
    try:
        head, *records = [json.loads(line) for line in body.splitlines()]
        made = [_record(fields) for fields in records]
        return Intent(
            MappingProxyType({record.id: record for record in made}),
            asked=int(head["asked"]),
            last_port=int(head["last_port"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        # Whole, so written by a program that kept other fields under the same version.
        raise _damaged(name, f"a record cannot be read ({type(error).__name__})") from error


def _damaged(name: str, why: str) -> DataError:
    return DataError(
        f"{name} is damaged: {why}. What it held before its last change is in {name}.previous: "
        "compare that with the regions that are there, and put it in its place to go on",
        reason="INTENT_DAMAGED",
        file=name,
    )


def _fields(record: Record) -> dict[str, Any]:
    wanted, geometry = record.wanted, record.wanted.geometry
    return {
        "id": str(wanted.id),
        "state": record.state.value,
        "port": record.port,
        "number": record.number,
        "block_size": geometry.block_size,
        "extent_size": geometry.blocks_per_extent,
        "extent_count": geometry.extent_count,
        "cipher": wanted.cipher,
        "source": wanted.source,
        "reason": record.reason,
        "snapshots": [
            {
                "name": wish.name,
                "state": wish.state.value,
                "generation": wish.generation,
                "flush": wish.flush,
                "reason": wish.reason,
            }
            for wish in record.snapshots
        ],
    }


def _record(fields: dict[str, Any]) -> Record:
    geometry = Geometry(
        int(fields["block_size"]), int(fields["extent_size"]), int(fields["extent_count"])
    )
    wanted = Wanted(UUID(fields["id"]), geometry, str(fields["cipher"]), str(fields["source"]))
    return Record(
        wanted,
        RegionState(fields["state"]),
        int(fields["port"]),
        int(fields["number"]),
        str(fields["reason"]),
        tuple(_wish(each) for each in fields["snapshots"]),
    )


def _wish(fields: dict[str, Any]) -> Wish:
    return Wish(
        str(fields["name"]),
        WishState(fields["state"]),
        int(fields["generation"]),
        int(fields["flush"]),
        str(fields["reason"]),
    )
