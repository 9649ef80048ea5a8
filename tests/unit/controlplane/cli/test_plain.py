"""Messages as plain data for programs."""

import json

from google.protobuf.timestamp_pb2 import Timestamp

from controlplane.cli.plain import dump, enum_word, plain
from stairwell.controlplane.v1 import disk_service_pb2, replacement_service_pb2
from stairwell.telemetry.v1 import trace_service_pb2


def test_enums_are_short_words():
    descriptor = disk_service_pb2.ReplaceResult.DESCRIPTOR
    assert enum_word(descriptor, 2) == "started_already"
    assert enum_word(descriptor, 0) == "unspecified"
    assert enum_word(descriptor, 99) == "99"


def test_every_field_is_there_and_absent_ones_are_null():
    data = plain(disk_service_pb2.Disk(name="block2", recorded_generation=2**63))
    assert data["name"] == "block2"
    assert data["recorded_generation"] == 2**63
    assert data["volume"] is None
    assert data["vcr"] is None
    assert data["read_only"] is False
    assert data["replacement_id"] == ""
    assert set(data) == {field.name for field in disk_service_pb2.Disk.DESCRIPTOR.fields}


def test_a_construction_request_keeps_the_form_of_files():
    disk = disk_service_pb2.Disk()
    disk.vcr.type = "volume"
    disk.vcr.sub_volumes.add(type="region", gen=1).opts.target.append("a:1")
    assert plain(disk)["vcr"] == {
        "type": "volume",
        "sub_volumes": [{"type": "region", "opts": {"target": ["a:1"]}, "gen": 1}],
    }


def test_times_maps_and_odd_numbers():
    replacement = replacement_service_pb2.Replacement(eta_seconds=float("inf"))
    replacement.create_time.CopyFrom(Timestamp(seconds=1_700_000_000))
    data = plain(replacement)
    assert data["create_time"] == "2023-11-14T22:13:20Z"
    assert data["update_time"] is None
    assert data["eta_seconds"] is None
    span = trace_service_pb2.Span(attributes={"b": "2", "a": "1"})
    assert plain(span)["attributes"] == {"a": "1", "b": "2"}


def test_a_line_is_one_line():
    data = {"a": ["é\n", 1]}
    assert dump(data, lines=True).count("\n") == 0
    assert json.loads(dump(data)) == json.loads(dump(data, lines=True)) == data
