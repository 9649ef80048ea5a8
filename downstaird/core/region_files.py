"""The small files of a region: what it is (`region.json`), who was promoted last (`owner`), and
what does not count because it could not be synced (`void`).

`region.json` is readable by hand; its `checksum` is the xxh3-64 of the other fields as compact
JSON with sorted keys.
"""

from __future__ import annotations

import json
import struct
import uuid

import xxhash

from downstaird.core.disk import Disk, File
from downstaird.core.engine import Ownership, RegionDefinition
from downstaird.core.layout import Layout
from downstaird.core.slot_file import SlotFile
from stairlib.model.cipher import CIPHERS, KEY_CHECK_BYTES
from stairlib.model.errors import AlreadyExistsError, DataError, InvalidRequestError
from stairlib.model.geometry import Geometry

DEFINITION_NAME = "region.json"
OWNER_NAME = "owner"
VOID_NAME = "void"
# The newest; a region is given the oldest that can describe it, see `version_for`. Version 2 is of
# encrypted regions that have no place for a key check yet. Version 5 is of those that have had a
# snapshot; there is no version 4.
FORMAT_VERSION = 5
SNAPSHOT_VERSION = 5
_PLAIN_VERSION = 1
_ENCRYPTED_VERSION = 2
_KEY_CHECK_VERSION = 3
_FORMAT_NAME = "stairwell-region"
_DEFINITION_BYTES_MAX = 4096

_OWNER_MAGIC = 0x4E4F5753  # "SWON"
# owner id, session id (all zero: nobody), generation
_OWNER = struct.Struct("<16s16sQ")
# and the key check (all zero: none)
_OWNER_WITH_KEY = struct.Struct(f"{_OWNER.format}{KEY_CHECK_BYTES}s")
_VOID_MAGIC = 0x44565753  # "SWVD"
# Records that failed to be made durable and are skipped at recovery; a checkpoint makes room for
# more.
VOID_MAX = 16
# how many are void, void checkpoint, void sequences
_VOID = struct.Struct(f"<QQ{VOID_MAX}Q")
_NOBODY = uuid.UUID(int=0)


def region_tag(region_id: uuid.UUID) -> int:
    """64 bits of the region's id: kept in every record, so that files of another region are not
    taken."""
    return xxhash.xxh3_64_intdigest(region_id.bytes)


def version_for(cipher: str) -> int:
    """The format version of a new region. Version 1 has no place for a cipher, and programs that
    know no other still read the regions that need none."""
    return _KEY_CHECK_VERSION if cipher else _PLAIN_VERSION


def versions_of(cipher: str) -> tuple[int, ...]:
    """The format versions in which regions of that cipher are read."""
    first = _ENCRYPTED_VERSION if cipher else _PLAIN_VERSION
    return (*range(first, version_for(cipher) + 1), SNAPSHOT_VERSION)


def _fields(definition: RegionDefinition, chunk_blocks: int) -> dict[str, object]:
    geometry = definition.geometry
    cipher = {"cipher": definition.cipher} if definition.cipher else {}
    return {
        "format": _FORMAT_NAME,
        "format_version": definition.format_version,
        "id": str(definition.id),
        "block_size": geometry.block_size,
        "blocks_per_extent": geometry.blocks_per_extent,
        "extent_count": geometry.extent_count,
        "encrypted": definition.encrypted,
        **cipher,
        "chunk_blocks": chunk_blocks,
    }


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def _checksum(fields: dict[str, object]) -> str:
    return f"{xxhash.xxh3_64_intdigest(_CANONICAL.encode(fields).encode()):016x}"


def write_definition(disk: Disk, definition: RegionDefinition, layout: Layout) -> None:
    """Stores it durably, whole or not at all. The last step of a region's creation."""
    fields = _fields(definition, layout.chunk_blocks)
    text = json.dumps({**fields, "checksum": _checksum(fields)}, indent=2) + "\n"
    temporary = DEFINITION_NAME + ".new"
    file = disk.open(temporary, create=True)
    try:
        file.pwritev([text.encode()], 0)
        file.datasync()
    finally:
        file.close()
    disk.rename(temporary, DEFINITION_NAME)
    disk.sync_directory()


def refuse_existing(disk: Disk) -> None:
    """AlreadyExistsError when the directory holds a region."""
    if disk.exists(DEFINITION_NAME):
        raise AlreadyExistsError(
            f"{disk.name} holds a region already: choose another directory, or remove that one",
            path=disk.name,
        )


def require_region(disk: Disk) -> None:
    """InvalidRequestError NOT_A_REGION when the directory holds none."""
    if not disk.exists(DEFINITION_NAME):
        raise InvalidRequestError(
            f"{disk.name} is not a region directory (it has no {DEFINITION_NAME}): "
            "create it with 'downstaird create'",
            reason="NOT_A_REGION",
            path=disk.name,
        )


def read_definition(disk: Disk) -> tuple[RegionDefinition, Layout]:
    """What `write_definition` stored. InvalidRequestError NOT_A_REGION, DataError."""
    require_region(disk)
    file = disk.open(DEFINITION_NAME, read_only=True)
    try:
        name = file.name
        raw = file.pread(min(file.size(), _DEFINITION_BYTES_MAX), 0)
    finally:
        file.close()
    return _parse_definition(name, raw)


def _parse_definition(name: str, raw: bytes) -> tuple[RegionDefinition, Layout]:
    try:
        fields = json.loads(raw)
        checksum = fields.pop("checksum")
        version = fields["format_version"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(name, "it is not the JSON object this program writes") from error
    if checksum != _checksum(fields):
        raise _damaged(name, "its checksum does not match its fields")
    if version not in (*range(_PLAIN_VERSION, _KEY_CHECK_VERSION + 1), SNAPSHOT_VERSION):
        raise DataError(
            f"{name} is of format version {version}; this program reads versions {_PLAIN_VERSION} "
            f"to {_KEY_CHECK_VERSION} and {SNAPSHOT_VERSION}: run the version that made it",
            reason="FORMAT_VERSION",
            file=name,
            offset="0",
        )
    try:
        geometry = Geometry(
            block_size=int(fields["block_size"]),
            blocks_per_extent=int(fields["blocks_per_extent"]),
            extent_count=int(fields["extent_count"]),
        )
        chunk_blocks = int(fields["chunk_blocks"])
        definition = RegionDefinition(
            id=uuid.UUID(fields["id"]),
            geometry=geometry,
            cipher=_cipher(name, fields),
            format_version=version,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(name, f"a field is missing or wrong: {error}") from error
    if geometry.problems() or not 1 <= chunk_blocks <= geometry.blocks_per_extent:
        raise _damaged(name, f"{geometry.describe()} with chunks of {chunk_blocks} is not legal")
    return definition, Layout(geometry, chunk_blocks)


def _cipher(name: str, fields: dict[str, object]) -> str:
    """DataError CIPHER_UNKNOWN for one that is not named, or not known here: nobody guesses."""
    if not fields["encrypted"]:
        return ""
    cipher = fields.get("cipher")
    if isinstance(cipher, str) and cipher in CIPHERS:
        return cipher
    found = f"with {cipher!r}" if cipher else "and does not say how"
    raise DataError(
        f"{name}: the region is encrypted {found}; this program knows {', '.join(CIPHERS)}: run "
        "the version that made it, or create the region anew",
        reason="CIPHER_UNKNOWN",
        file=name,
        offset="0",
    )


def _damaged(name: str, why: str) -> DataError:
    return DataError(f"{name} is damaged at byte 0: {why}", file=name, offset="0")


class OwnerFile:
    """The durable ownership. For the loop's thread."""

    def __init__(self, file: File) -> None:
        self._slots = SlotFile(file, _OWNER_MAGIC, _OWNER.size, _OWNER_WITH_KEY.size)
        self.ownership = Ownership(owner_id=None, session_id=None, generation=0)

    def load(self) -> None:
        """Reads it back. DataError."""
        body = self._slots.load()
        owner, session, generation = _OWNER.unpack_from(body)
        key_check = body[_OWNER.size :]
        self.ownership = Ownership(
            owner_id=None if owner == _NOBODY.bytes else uuid.UUID(bytes=owner),
            session_id=None if session == _NOBODY.bytes else uuid.UUID(bytes=session),
            generation=generation,
            key_check=key_check if any(key_check) else b"",
        )

    def store(self, ownership: Ownership) -> None:
        """Returns once it is durable. DataError; the ownership is then as before."""
        owner = (ownership.owner_id or _NOBODY).bytes
        session = (ownership.session_id or _NOBODY).bytes
        # Without a check as the first version has it: regions of older formats know no other.
        body = _OWNER.pack(owner, session, ownership.generation)
        self._slots.store(body + ownership.key_check)
        self.ownership = ownership


class VoidFile:
    """What could not be synced, and so must not count when the region is opened again: the page
    cache may show it although the medium does not have it. Stored by the worker's thread.

    records: log sequences. checkpoint: count of a state file whose header could not be synced; 0
    when there is none.
    """

    def __init__(self, file: File) -> None:
        self._slots = SlotFile(file, _VOID_MAGIC, _VOID.size)
        self.records: tuple[int, ...] = ()
        self.checkpoint = 0

    def load(self) -> None:
        """Reads it back. DataError."""
        count, self.checkpoint, *records = _VOID.unpack(self._slots.load())
        self.records = tuple(records[:count])

    def add_record(self, sequence: int) -> None:
        """The record with that sequence does not count. DataError when that cannot be stored
        either."""
        self.records = (*self.records, sequence)[-VOID_MAX:]
        self.store()

    def set_checkpoint(self, count: int) -> None:
        """The state file with that count does not count. DataError."""
        self.checkpoint = count
        self.store()

    def forget(self, before: int) -> None:
        """Records before that sequence are not read any more: the next store leaves them out."""
        self.records = tuple(each for each in self.records if each >= before)

    def store(self) -> None:
        """Returns once it is durable. DataError."""
        rest = [0] * (VOID_MAX - len(self.records))
        self._slots.store(_VOID.pack(len(self.records), self.checkpoint, *self.records, *rest))
