"""A disk's history, asked of its machine through the control plane."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from stairlib.model.errors import NotFoundError, UnavailableError
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from tests.contract.controlplane_house import SECONDS, VOLUME, House, house, refused


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path / "data") as found:
        await found.create_running()
        found.vmmd.history = [
            volume_pb.VolumeSample(end_time=Timestamp(seconds=second), reads=second)
            for second in (100, 101, 102)
        ]
        yield found


def ask(home: House, name: str, after: int = 0, samples_max: int = 0):
    request = disk_pb.GetDiskHistoryRequest(name=name, samples_max=samples_max)
    if after:
        request.after_time.seconds = after
    return home.disks.GetDiskHistory(request, timeout=SECONDS)


@pytest.mark.parametrize("name", ["block2", VOLUME])
async def test_samples_come_as_the_machine_tells_them(home: House, name: str) -> None:
    answer = await ask(home, name)
    assert [one.reads for one in answer.samples] == [100, 101, 102]
    assert list(answer.samples) == home.vmmd.history


async def test_only_later_samples_are_told(home: House) -> None:
    assert [one.reads for one in (await ask(home, "block2", 101)).samples] == [102]
    assert not (await ask(home, "block2", 102)).samples


async def test_only_the_newest_are_told_where_few_are_wanted(home: House) -> None:
    assert [one.reads for one in (await ask(home, "block2", 0, 2)).samples] == [101, 102]
    assert [one.reads for one in (await ask(home, "block2", 101, 2)).samples] == [102]


async def test_an_unknown_disk_and_an_absent_machine_are_told_apart(home: House) -> None:
    code, error = await refused(ask(home, "block3"))
    assert code is grpc.StatusCode.NOT_FOUND
    assert isinstance(error, NotFoundError)
    home.vmmd.failures["GetVolumeHistory"] = [UnavailableError("vmmd is away")]
    code, error = await refused(ask(home, "block2"))
    assert code is grpc.StatusCode.UNAVAILABLE
