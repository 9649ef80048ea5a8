"""The small files: definition, ownership, voids."""

from __future__ import annotations

import json
import struct
import uuid

import pytest
import xxhash

from downstaird.core.engine import Ownership
from downstaird.core.layout import Layout
from downstaird.core.region_files import (
    DEFINITION_NAME,
    OWNER_NAME,
    VOID_MAX,
    VOID_NAME,
    OwnerFile,
    VoidFile,
    read_definition,
    refuse_existing,
    version_for,
    versions_of,
    write_definition,
)
from downstaird.store.memory import MemoryDisk
from stairlib.model.cipher import AES_256_GCM, CIPHERS
from stairlib.model.errors import AlreadyExistsError, DataError, InvalidRequestError
from stairlib.model.geometry import Geometry
from tests.unit.downstaird.core.region_rig import definition_of


@pytest.fixture
def disk():
    return MemoryDisk()


def text_of(disk):
    file = disk.open(DEFINITION_NAME)
    return file.pread(file.size(), 0).decode()


def replace_text(disk, text):
    disk.open(DEFINITION_NAME, create=True).pwritev([text.encode()], 0)


def test_a_definition_comes_back_and_can_be_read_by_hand(disk) -> None:
    definition = definition_of(Geometry(4096, 100, 3))
    layout = Layout.for_geometry(definition.geometry)
    write_definition(disk, definition, layout)
    assert read_definition(disk) == (definition, layout)
    fields = json.loads(text_of(disk))
    assert fields["id"] == str(definition.id)
    assert fields["blocks_per_extent"] == 100
    # As the first version of the format has it, to the last field: other releases read it.
    assert set(fields) == {
        *("format", "format_version", "id", "block_size", "blocks_per_extent", "extent_count"),
        *("encrypted", "chunk_blocks", "checksum"),
    }
    assert fields["format_version"] == 1


@pytest.mark.parametrize("cipher", CIPHERS)
def test_an_encrypted_region_says_how_and_is_of_the_third_version(disk, cipher) -> None:
    version = version_for(cipher)
    definition = definition_of(cipher=cipher, format_version=version)
    layout = Layout.for_geometry(definition.geometry)
    write_definition(disk, definition, layout)
    assert read_definition(disk) == (definition, layout)
    fields = json.loads(text_of(disk))
    assert (fields["format_version"], fields["encrypted"], fields["cipher"]) == (3, True, cipher)


def test_an_encrypted_region_of_the_second_version_is_still_read(disk) -> None:
    definition = definition_of(cipher=AES_256_GCM, format_version=2)
    layout = Layout.for_geometry(definition.geometry)
    write_definition(disk, definition, layout)
    assert read_definition(disk) == (definition, layout)
    assert list(versions_of(AES_256_GCM)) == [2, 3, 5]
    assert list(versions_of("")) == [1, 5]


@pytest.mark.parametrize(
    ("cipher", "says"),
    [("rot13", "encrypted with 'rot13'"), (7, "encrypted with 7"), (None, "does not say how")],
)
def test_a_suite_that_is_not_known_or_not_named_is_refused(disk, cipher, says) -> None:
    definition = definition_of(cipher=AES_256_GCM, format_version=2)
    write_definition(disk, definition, Layout.for_geometry(definition.geometry))
    fields = json.loads(text_of(disk))
    del fields["checksum"]
    fields["cipher"] = cipher
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    checksum = f"{xxhash.xxh3_64_intdigest(text.encode()):016x}"
    place = MemoryDisk()
    replace_text(place, json.dumps({**fields, "checksum": checksum}))
    with pytest.raises(DataError) as refused:
        read_definition(place)
    assert refused.value.reason == "CIPHER_UNKNOWN"
    assert says in refused.value.message


def test_a_directory_without_one_is_no_region(disk) -> None:
    refuse_existing(disk)
    with pytest.raises(InvalidRequestError) as refused:
        read_definition(disk)
    assert refused.value.reason == "NOT_A_REGION"
    assert "memory" in refused.value.message


def test_a_directory_with_one_is_taken(disk) -> None:
    write_definition(disk, definition_of(), Layout.for_geometry(Geometry(512, 16, 4)))
    with pytest.raises(AlreadyExistsError):
        refuse_existing(disk)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"checksum": "x"}', '"\\ud800"'])
def test_what_is_no_definition_is_damage(disk, text) -> None:
    replace_text(disk, text)
    with pytest.raises(DataError, match=r"region\.json is damaged at byte 0"):
        read_definition(disk)


def test_a_changed_field_is_damage(disk) -> None:
    write_definition(disk, definition_of(), Layout.for_geometry(Geometry(512, 16, 4)))
    replace_text(disk, text_of(disk).replace('"extent_count": 4', '"extent_count": 5'))
    with pytest.raises(DataError, match="checksum"):
        read_definition(disk)


def test_a_newer_format_is_refused(disk) -> None:
    write_definition(
        disk, definition_of(format_version=4), Layout.for_geometry(Geometry(512, 16, 4))
    )
    with pytest.raises(DataError) as newer:
        read_definition(disk)
    assert newer.value.reason == "FORMAT_VERSION"


def test_ownership_survives_and_is_forgotten_when_given_back(disk) -> None:
    file = disk.open(OWNER_NAME, create=True)
    owner = OwnerFile(file)
    first = Ownership(uuid.uuid4(), uuid.uuid4(), 7)
    keyed = Ownership(uuid.uuid4(), uuid.uuid4(), 8, key_check=bytes(range(16)))
    for ownership in (first, Ownership(None, None, 0), keyed, first, keyed, keyed):
        owner.store(ownership)
        again = OwnerFile(file)
        again.load()
        assert again.ownership == ownership == owner.ownership


def test_a_torn_store_leaves_the_ownership_before(disk) -> None:
    file = disk.open(OWNER_NAME, create=True)
    owner = OwnerFile(file)
    kept = Ownership(uuid.uuid4(), uuid.uuid4(), 7)
    owner.store(Ownership(uuid.uuid4(), uuid.uuid4(), 6))
    owner.store(kept)
    before, other = file.pread(512, 4096), file.pread(512, 0)
    owner.store(Ownership(uuid.uuid4(), uuid.uuid4(), 8))
    torn = file.pread(512, 4096)
    file.pwritev([torn[:30] + before[30:]], 4096)
    # The power cut came before the second slot was written.
    file.pwritev([other], 0)
    again = OwnerFile(file)
    again.load()
    assert again.ownership == kept


@pytest.mark.parametrize("slot", [0, 4096])
def test_damage_to_either_slot_does_not_bring_an_older_owner_back(disk, slot) -> None:
    file = disk.open(OWNER_NAME, create=True)
    owner = OwnerFile(file)
    owner.store(Ownership(uuid.uuid4(), uuid.uuid4(), 7))
    newest = Ownership(uuid.uuid4(), uuid.uuid4(), 8)
    owner.store(newest)
    file.pwritev([b"\xff"], slot + 20)
    again = OwnerFile(file)
    again.load()
    assert again.ownership == newest


def test_a_store_that_fails_changes_nothing(disk) -> None:
    owner = OwnerFile(disk.open(OWNER_NAME, create=True))
    kept = Ownership(uuid.uuid4(), uuid.uuid4(), 7)
    owner.store(kept)
    disk.fail_sync = lambda _: True
    with pytest.raises(DataError):
        owner.store(Ownership(None, None, 9))
    assert owner.ownership == kept


def test_no_whole_copy_is_damage(disk) -> None:
    with pytest.raises(DataError, match="owner is damaged at byte 0"):
        OwnerFile(disk.open(OWNER_NAME, create=True)).load()


def test_the_ownership_of_a_plain_region_is_as_the_first_version_has_it(disk) -> None:
    file = disk.open(OWNER_NAME, create=True)
    owner = OwnerFile(file)
    kept = Ownership(uuid.uuid4(), uuid.uuid4(), 7)
    owner.store(kept)
    body = struct.pack("<IHHQ16s16sQ", 0x4E4F5753, 1, 0, 1, kept.owner_id.bytes,
                       kept.session_id.bytes, 7)  # fmt: skip
    checksum = xxhash.xxh3_64_intdigest(body).to_bytes(8, "little")
    assert file.pread(512, 4096) == (body + checksum).ljust(512, b"\0")


def test_a_torn_store_of_the_first_key_check_leaves_the_ownership_before(disk) -> None:
    file = disk.open(OWNER_NAME, create=True)
    owner = OwnerFile(file)
    kept = Ownership(uuid.uuid4(), uuid.uuid4(), 7)
    owner.store(kept)
    other = file.pread(512, 0)
    owner.store(Ownership(kept.owner_id, kept.session_id, 8, key_check=bytes(range(16))))
    whole = file.pread(512, 4096)
    file.pwritev([other], 0)
    for at in range(0, 80, 5):
        file.pwritev([whole[:at].ljust(512, b"\0")], 4096)
        again = OwnerFile(file)
        again.load()
        assert again.ownership == kept


def test_a_key_check_is_not_shown() -> None:
    assert "key_check" not in repr(Ownership(None, None, 1, key_check=bytes(range(16))))


@pytest.mark.parametrize("body_bytes", [40, 56])
def test_a_newer_slot_is_refused(disk, body_bytes) -> None:
    file = disk.open(OWNER_NAME, create=True)
    head = struct.pack("<IHHQ", 0x4E4F5753, 3, 0, 1) + bytes(body_bytes)
    file.pwritev([head + xxhash.xxh3_64_intdigest(head).to_bytes(8, "little")], 0)
    with pytest.raises(DataError, match="version 3") as refused:
        OwnerFile(file).load()
    assert refused.value.reason == "FORMAT_VERSION"


def test_voids_survive_until_they_are_forgotten(disk) -> None:
    file = disk.open(VOID_NAME, create=True)
    void = VoidFile(file)
    for sequence in range(20):
        void.add_record(sequence)
    void.set_checkpoint(5)
    again = VoidFile(file)
    again.load()
    assert again.records == tuple(range(20 - VOID_MAX, 20))
    assert again.checkpoint == 5
    again.forget(18)
    again.store()
    last = VoidFile(file)
    last.load()
    assert last.records == (18, 19)
