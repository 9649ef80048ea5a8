"""The two small files of a region: what it is (`region.json`), and who was promoted last (`owner`).

`region.json` is readable by hand; its `checksum` is the xxh3-64 of the other fields as compact
JSON with sorted keys. `owner` has two slots of 4096 bytes, written in turn and synced, the valid
one with the higher count being true.
"""

from __future__ import annotations

import json
import struct
import threading
import uuid

import xxhash

from downstaird.core.disk import Disk, File
from downstaird.core.engine import Ownership, RegionDefinition
from downstaird.core.layout import Layout
from stairlib.model.errors import AlreadyExistsError, DataError, InvalidRequestError
from stairlib.model.geometry import Geometry

DEFINITION_NAME = "region.json"
OWNER_NAME = "owner"
FORMAT_VERSION = 1
_FORMAT_NAME = "stairwell-region"
_DEFINITION_BYTES_MAX = 4096

_OWNER_MAGIC = 0x4E4F5753  # "SWON"
_OWNER_VERSION = 1
_SLOT_BYTES = 4096
# Records that failed to be made durable and are skipped at recovery; more are refused.
VOID_MAX = 16
# magic, version, void count, count of writes, owner id, session id, generation, void checkpoint,
# void sequences
_OWNER = struct.Struct(f"<IHHQ16s16sQQ{VOID_MAX}Q")
_NOBODY = uuid.UUID(int=0)


def region_tag(region_id: uuid.UUID) -> int:
    """64 bits of the region's id: kept in every record, so that files of another region are not
    taken."""
    return xxhash.xxh3_64_intdigest(region_id.bytes)


def _fields(definition: RegionDefinition, chunk_blocks: int) -> dict[str, object]:
    geometry = definition.geometry
    return {
        "format": _FORMAT_NAME,
        "format_version": definition.format_version,
        "id": str(definition.id),
        "block_size": geometry.block_size,
        "blocks_per_extent": geometry.blocks_per_extent,
        "extent_count": geometry.extent_count,
        "encrypted": definition.encrypted,
        "chunk_blocks": chunk_blocks,
    }


def _checksum(fields: dict[str, object]) -> str:
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return f"{xxhash.xxh3_64_intdigest(text.encode()):016x}"


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


def read_definition(disk: Disk) -> tuple[RegionDefinition, Layout]:
    """What `write_definition` stored. InvalidRequestError NOT_A_REGION, DataError."""
    if not disk.exists(DEFINITION_NAME):
        raise InvalidRequestError(
            f"{disk.name} is not a region directory (it has no {DEFINITION_NAME}): "
            "create it with 'downstaird create'",
            reason="NOT_A_REGION",
            path=disk.name,
        )
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
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(name, "it is not the JSON object this program writes") from error
    if checksum != _checksum(fields):
        raise _damaged(name, "its checksum does not match its fields")
    if version != FORMAT_VERSION:
        raise DataError(
            f"{name} is of format version {version}; this program reads version {FORMAT_VERSION}: "
            "run the version that made it",
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
            encrypted=bool(fields["encrypted"]),
            format_version=version,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(name, f"a field is missing or wrong: {error}") from error
    if geometry.problems() or not 1 <= chunk_blocks <= geometry.blocks_per_extent:
        raise _damaged(name, f"{geometry.describe()} with chunks of {chunk_blocks} is not legal")
    return definition, Layout(geometry, chunk_blocks)


def _damaged(name: str, why: str) -> DataError:
    return DataError(f"{name} is damaged at byte 0: {why}", file=name, offset="0")


class OwnerFile:
    """The durable ownership; and which records and checkpoints are void.

    Void is what could not be synced: the page cache may show it although the medium does not
    have it, so that it must not count when the region is opened again. Methods may be called on
    any thread.
    """

    def __init__(self, file: File) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._count = 0
        self.ownership = Ownership(owner_id=None, session_id=None, generation=0)
        self.void: tuple[int, ...] = ()
        # Count of a checkpoint whose header could not be synced; 0 when there is none.
        self.void_checkpoint = 0

    @classmethod
    def create(cls, file: File) -> OwnerFile:
        """A region nobody owns yet."""
        owner = cls(file)
        owner.promote(owner.ownership)
        return owner

    @classmethod
    def load(cls, file: File) -> OwnerFile:
        """DataError when neither slot is whole."""
        owner = cls(file)
        for offset in (0, _SLOT_BYTES):
            if file.size() >= offset + _OWNER.size + 8:
                owner._take(file.pread(_OWNER.size + 8, offset), offset)
        if not owner._count:
            raise DataError(
                f"{file.name} is damaged at byte 0: neither copy of the ownership is whole",
                file=file.name,
                offset="0",
            )
        return owner

    def _take(self, raw: bytes, offset: int) -> None:
        body = raw[: _OWNER.size]
        (checksum,) = struct.unpack_from("<Q", raw, _OWNER.size)
        fields = _OWNER.unpack(body)
        if fields[0] != _OWNER_MAGIC or xxhash.xxh3_64_intdigest(body) != checksum:
            return
        if fields[1] != _OWNER_VERSION:
            raise DataError(
                f"{self._file.name} has version {fields[1]} at byte {offset}; this program reads "
                f"version {_OWNER_VERSION}: run the newer one",
                reason="FORMAT_VERSION",
                file=self._file.name,
                offset=str(offset),
            )
        if fields[3] <= self._count:
            return
        self._count = fields[3]
        owner, session = uuid.UUID(bytes=fields[4]), uuid.UUID(bytes=fields[5])
        self.ownership = Ownership(
            owner_id=None if owner == _NOBODY else owner,
            session_id=None if session == _NOBODY else session,
            generation=fields[6],
        )
        self.void_checkpoint = fields[7]
        self.void = tuple(fields[8 : 8 + fields[2]])

    def promote(self, ownership: Ownership) -> None:
        """Returns once it is durable. DataError; the copy before is then still there."""
        with self._lock:
            self._store(ownership)
            self.ownership = ownership

    def void_record(self, sequence: int) -> None:
        """The record with that sequence does not count."""
        with self._lock:
            self.void = (*self.void, sequence)[-VOID_MAX:]
            self._store(self.ownership)

    def void_state(self, count: int) -> None:
        """The state file with that count does not count."""
        with self._lock:
            self.void_checkpoint = count
            self._store(self.ownership)

    def forget_void(self, before: int) -> None:
        """Records before that sequence are not read any more: the next store leaves them out."""
        with self._lock:
            self.void = tuple(each for each in self.void if each >= before)

    def _store(self, ownership: Ownership) -> None:
        self._count += 1
        body = _OWNER.pack(
            _OWNER_MAGIC,
            _OWNER_VERSION,
            len(self.void),
            self._count,
            (ownership.owner_id or _NOBODY).bytes,
            (ownership.session_id or _NOBODY).bytes,
            ownership.generation,
            self.void_checkpoint,
            *self.void,
            *[0] * (VOID_MAX - len(self.void)),
        )
        raw = body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body))
        offset = self._count % 2 * _SLOT_BYTES
        self._file.pwritev([raw.ljust(512, b"\0")], offset)
        self._file.datasync()
