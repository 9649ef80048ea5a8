"""The walk-through's disk on containers: asked and loaded at vmmd, its slots watched all the time.

The load and the watch are calls of vmmd, at its address on the containers' network: neither needs
the control plane, so that they tell what happens while that is away too.
"""

from __future__ import annotations

import json
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import disk_service_pb2_grpc as disk_grpc
from tests.integration.cluster import Calls, until
from tests.integration.slot_watch import SLOTS, Watch, watched
from tests.integration.volume import Volume

ROOT = Path(__file__).resolve().parents[2]
DISKS = "examples/compose/crucible-disks.json"
REPLACEMENT = "examples/compose/replace.json"
INSTANCE = "crub"
EXTENT_COUNT = 128


class Daemon:
    """A container's daemon, where it is now."""

    def __init__(self, cluster: Any, service: str, port: int) -> None:
        self.address: str = cluster.address(service, port)


class ComposeVolume(Volume):
    """The disk of examples/compose, on the containers of a cluster."""

    def __init__(self, cluster: Any, calls: Calls) -> None:
        [spec] = json.loads((ROOT / DISKS).read_text())
        super().__init__(calls, ())  # type: ignore[arg-type]
        self.containers = cluster
        self.id = spec["volume_construction_request"]["id"]
        self.disk = spec["name"]
        self.instance = INSTANCE
        self.extent_count = EXTENT_COUNT

    async def find(self) -> None:
        """Learns the machine's id, which calls of vmmd name."""
        self.instance_id = (await self.cluster.get_instance(self.instance)).id

    def watched(self) -> AbstractAsyncContextManager[Watch]:
        """Watches the slots while the block runs; all are active at its start."""
        return watched(self)

    async def intact(self) -> None:
        """All three members are active and equal, and give back what the guest wrote."""
        await self.settled()
        # A connection that outlived a cut may still be found to lead nowhere: a container that
        # comes back can have another one's address. Who answers this is really there.
        await until(self._compared, lambda members: members == SLOTS)
        await self.verify()
        await self.read_back()

    async def _compared(self) -> int:
        request = disk_pb.VerifyDiskRequest(name=self.disk)
        stub = disk_grpc.DiskServiceStub
        report = (await self.cluster.call(stub, "VerifyDisk", request)).report
        assert report.equal, report
        return int(report.members_compared)
