"""The demo's installation: four downstairs, vmmd and the control plane; its disk's geometry."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from controlplane.cli.demo.processes import LOOPBACK, Processes
from controlplane.cli.failure import CommandError
from controlplane.cli.units import format_bytes
from stairwell.controlplane.v1.instance_service_pb2 import DiskSpec
from stairwell.vcr.v1.volume_construction_request_pb2 import VolumeConstructionRequest

# The documented walk-through's disk: 128 extents of 64 MiB, 8 GiB in all.
BLOCK_SIZE = 4096
BLOCKS_PER_EXTENT = 16384
EXTENT_COUNT = 128
MEMBERS = 3
DISK = "block2"
PCI_SLOT = 3
# Each written byte is kept by four regions at the end; small writes pass through a log as well.
SPACE_FACTOR = 8
SPACE_SPARE_BYTES = 1 << 30


@dataclass(slots=True)
class House:
    """The running daemons' addresses. `downstairs` holds the three members, then the spare."""

    processes: Processes
    downstairs: list[str]
    vmmd: str
    controlplane: str
    volume_id: str

    @property
    def members(self) -> list[str]:
        """The targets at first, in slot order."""
        return self.downstairs[:MEMBERS]

    @property
    def spare(self) -> str:
        """The downstairs that will replace a member."""
        return self.downstairs[MEMBERS]

    def lose_members(self) -> None:
        """The members at first die as by a power cut, and their data is thrown away."""
        for number, address in enumerate(self.members):
            self.processes.kill(address)
            self.processes.discard(region_folder(self.processes, number))

    def disk(self) -> DiskSpec:
        """The machine's disk as a crucible-disks file has it."""
        vcr = construction(self.volume_id, 1, self.members)
        return DiskSpec(device="nvme", name=DISK, slot=PCI_SLOT, volume_construction_request=vcr)

    def replacement(self, slot: int) -> VolumeConstructionRequest:
        """The request that puts the spare into `slot`: one target differs, the generation rises."""
        targets = list(self.members)
        targets[slot] = self.spare
        return construction(self.volume_id, 2, targets)


def construction(volume_id: str, generation: int, targets: list[str]) -> VolumeConstructionRequest:
    """A volume of one region set, as in the documented files."""
    request = VolumeConstructionRequest(type="volume", id=volume_id, block_size=BLOCK_SIZE)
    region = request.sub_volumes.add(
        type="region",
        block_size=BLOCK_SIZE,
        blocks_per_extent=BLOCKS_PER_EXTENT,
        extent_count=EXTENT_COUNT,
        gen=generation,
    )
    region.opts.id = volume_id
    region.opts.target.extend(targets)
    region.opts.lossy = False
    region.opts.read_only = False
    return request


def check_space(processes: Processes, fill_bytes: int) -> None:
    """Refuses to begin where the data would not fit."""
    needed = fill_bytes * SPACE_FACTOR + SPACE_SPARE_BYTES
    free = shutil.disk_usage(processes.folder).free
    if free < needed:
        raise CommandError(
            f"{processes.folder} has {format_bytes(free)} free, the demo needs "
            f"{format_bytes(needed)}",
            "name another place with --dir, or write less with --bytes",
        )


async def build(processes: Processes) -> House:
    """Creates the regions and starts all daemons; returns when every one of them serves."""
    try:
        async with asyncio.TaskGroup() as group:
            downstairs = [
                group.create_task(_downstairs(processes, number)) for number in range(MEMBERS + 1)
            ]
            vmmd_task = group.create_task(_vmmd(processes))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    vmmd = vmmd_task.result()
    data = processes.folder / "controlplane"
    controlplane = await processes.start(
        "controlplane",
        lambda port: [
            "controlplane", "run", f"{LOOPBACK}:{port}", "--vmmd", vmmd, "--data", str(data),
        ],
    )  # fmt: skip
    addresses = [task.result() for task in downstairs]
    return House(processes, addresses, vmmd, controlplane.address, str(uuid.uuid4()))


def region_folder(processes: Processes, number: int) -> Path:
    """Where the region of that downstairs is kept."""
    return processes.folder / f"downstairs{number}"


async def _downstairs(processes: Processes, number: int) -> str:
    folder = region_folder(processes, number)
    geometry = [
        "--block-size", str(BLOCK_SIZE),
        "--extent-size", str(BLOCKS_PER_EXTENT),
        "--extent-count", str(EXTENT_COUNT),
    ]  # fmt: skip
    create = ["downstaird", "create", "-d", str(folder), "-u", str(uuid.uuid4()), *geometry]
    await processes.run(f"create{number}", create)
    daemon = await processes.start(
        f"downstairs{number}",
        lambda port: [
            "downstaird", "run", "-d", str(folder), "-p", str(port), "--address", LOOPBACK,
        ],
    )  # fmt: skip
    return daemon.address


async def _vmmd(processes: Processes) -> str:
    # Nothing to configure: no firmware and no device of its own; the disk comes with the instance.
    config = processes.folder / "server.toml"
    config.touch()
    daemon = await processes.start(
        "vmmd", lambda port: ["vmmd", "run", str(config), f"{LOOPBACK}:{port}"]
    )
    return daemon.address
