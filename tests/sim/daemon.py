"""A storage host: a disk that survives, and a downstairs process that comes and goes.

The process is killed (its page cache stays), or the host loses power (of what was not synced some
sectors stay, torn anyhow); both may strike in the middle of a flush or of a checkpoint. The region
and its recovery are the real ones.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

from downstaird.core.engine import RegionDefinition
from downstaird.core.layout import Tuning
from downstaird.core.promotion import Proposal
from downstaird.core.region import Region
from downstaird.core.region_files import version_for
from downstaird.store.memory import MemoryDisk
from stairlib.model.errors import StairwellError, UnavailableError
from stairlib.sim.disk_faults import DiskFaults
from stairlib.sim.network import End
from tests.sim.serving import Conversation, Host
from vmmd.upstairs.core.events import ExtentStamps, SessionInfo

if TYPE_CHECKING:
    from tests.sim.world import World

BLOCK = 512
CHUNK_BLOCKS = 8
# Small, so that checkpoints, forced ones too, and whole chunks come in every run.
TUNING = Tuning(
    large_bytes=CHUNK_BLOCKS * BLOCK,
    arena_bytes=64 * BLOCK,
    log_bytes=12 * 4096,
    log_bytes_max=40 * 4096,
    fresh_context_bytes=6 * CHUNK_BLOCKS * 32,
    cached_context_bytes=3 * CHUNK_BLOCKS * 32,
    step_blocks=8,
    step_growth=2,
    log_zero_bytes=4096,
)
# Disk operations that a kill in the middle of the lane's work lets through, at most.
TORN_STEPS_MAX = 8


class KilledError(Exception):
    """The process ends in the middle of what it does."""


class Daemon:
    """One storage host. `service` is there while the process runs."""

    def __init__(self, world: World, number: int, prefix: str = "d") -> None:
        self.world = world
        self.host = f"{prefix}{number}"
        self.address = f"{self.host}:8810"
        self.faults = DiskFaults(world.chance)
        self.service: Host | None = None
        # Its stored data was damaged by us, not by the code.
        self.rotten = False
        # Where, and the pages as they were then.
        self.rotten_pages: list[tuple[int, bytes]] = []
        # Its disk fails or will: the process is to be started again.
        self.ill = False
        self.disk = MemoryDisk(self.host)
        # What somebody copied earlier, and may put back.
        self.kept: MemoryDisk | None = None
        # Served to readers only.
        self.read_only = False
        self.definition: RegionDefinition
        self.make_region()

    def note(self, text: str) -> None:
        """A line of the trace."""
        self.world.trace.note(self.host, text)

    # ---- the disk

    def make_region(self, definition: RegionDefinition | None = None) -> None:
        """A new, blank region on a new disk; the process must not run. It fits the volume unless
        another `definition` is given."""
        assert self.service is None
        self.definition = definition or self.fitting()
        self.kept = None
        self.rotten = False
        self.rotten_pages = []
        self.faults.clear()
        self._take_disk(MemoryDisk(self.host))
        Region.create(
            self.disk, self.definition, tuning=self._tuning(), chunk_bytes=CHUNK_BLOCKS * BLOCK
        ).close()

    def fitting(self) -> RegionDefinition:
        """What a new region of the volume is."""
        region_id = uuid.UUID(int=self.world.chance.getrandbits(128))
        cipher = self.world.sealing.cipher
        return RegionDefinition(
            region_id, self.world.geometry, cipher=cipher, format_version=version_for(cipher)
        )

    def rot(self, offsets: list[int]) -> None:
        """Flips a bit of each of these bytes of the data."""
        self.note("its data rots")
        self.rotten = True
        for offset in offsets:
            self.disk.rot("data", offset)
            self.rotten_pages.append((offset, self.disk.page("data", offset)))

    def restore(self) -> None:
        """Somebody has got the data back that rotted, where nothing was written since."""
        self.note("its data is brought back")
        for offset, page in self.rotten_pages:
            self.disk.stop_rotting("data", offset, page)
        self.rotten_pages = []

    def keep_copy(self) -> None:
        """Somebody copies the region directory, as it is on the medium."""
        self.kept = self.disk.medium()

    def put_back(self) -> None:
        """The region is the copy that was kept; the process must not run."""
        assert self.service is None
        assert self.kept is not None
        self._take_disk(self.kept.medium())

    def _take_disk(self, disk: MemoryDisk) -> None:
        self.disk = disk
        disk.fail_sync = self.faults.fail_sync

    def _tuning(self) -> Tuning:
        return replace(TUNING, log_bytes=int(TUNING.log_bytes * self.world.chance.uniform(1, 2)))

    def durable(self) -> Region:
        """What is on the medium now, opened apart: nothing unsynced is in it. For checkers."""
        return Region.open(self.disk.medium(), tuning=TUNING)

    # ---- the process

    @property
    def up(self) -> bool:
        """Whether the process runs."""
        return self.service is not None

    def start(self) -> None:
        """Starts the process on what the disk holds; does nothing when it runs."""
        if self.service is not None:
            return
        self.world.network.came_back(self.host)
        self.faults.clear()
        self.ill = False
        self.disk.capacity = None
        try:
            engine = Region.open(self.disk, read_only=self.read_only, tuning=self._tuning())
        except StairwellError as error:
            self.world.fail(f"{self.host} cannot open its region: {error.message}")
            return
        self.service = Host(self, engine)
        self.note("starts")

    def kill(self, *, power: bool) -> None:
        """The process ends at once; with `power`, the host and what was not synced too."""
        service = self.service
        if service is None:
            return
        self.note("loses power" if power else "is killed")
        service.over = True
        self.service = None
        if service.lane.unwritten is not None:
            self._torn(service.lane.unwritten)
        service.engine.close()
        if power:
            self.world.network.went_dark(self.host)
            self._take_disk(self.disk.image(self.faults.after_power_cut()))
        else:
            self.world.network.killed(self.host)

    def _torn(self, work) -> None:
        """The lane's work gets as far as it gets."""
        left = self.world.chance.randrange(0, TORN_STEPS_MAX)

        def observed(_action: str, _name: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KilledError

        self.disk.observer = observed
        try:
            work.run()
        except (KilledError, StairwellError):
            self.note("... in the middle of its disk's work")
        finally:
            self.disk.observer = lambda _action, _name: None

    # ---- what it answers

    def get_region(self) -> tuple[str, str]:
        """The region's id and its owner, as text; UnavailableError while the process is down."""
        service = self._service()
        return str(self.definition.id), str(service.engine.ownership.owner_id or "")

    def open_session(self, proposal: Proposal) -> tuple[SessionInfo, bytes]:
        """What is told of the region, and the token; StairwellError when refused."""
        service = self._service()
        grant = service.open_session(proposal)
        states = service.engine.extent_states()
        stamps = ExtentStamps(states.generations, states.flushes, states.flags)
        owner = service.engine.ownership.owner_id
        told = SessionInfo(
            str(self.definition.id),
            stamps,
            owned_before=False,
            cipher=self.definition.cipher,
            owner_id=str(owner or ""),
        )
        return told, grant.token

    def accept(self, end: End) -> None:
        """A data connection has come."""
        Conversation(self._service(), end)

    def _service(self) -> Host:
        if self.service is None:
            raise UnavailableError(f"{self.address} refuses connections")
        return self.service
