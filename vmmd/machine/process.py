"""The one machine of this process, from nothing through its life to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import grpc

from stairlib.model.errors import StateError
from stairlib.rpc.channel import open_channel
from stairlib.telemetry.tracing import Tracing
from vmmd.core.machine import MachineRecord, MachineSpec
from vmmd.core.request_queue import RequestKind
from vmmd.core.server_config import ServerConfig
from vmmd.engine.core.hypervisor import Hypervisor
from vmmd.machine.driver import Driver
from vmmd.machine.machine import Machine
from vmmd.upstairs.shell.runner import Peer


class MachineHost:
    """Holds the machine and its driver once configured; StateError before."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._machine: Machine | None = None
        self._driver: Driver | None = None
        self._engine = ""
        self._configuring = False
        self._configured = asyncio.Event()
        self._run: asyncio.Task[None] | None = None
        self._channels: dict[str, tuple[Peer, grpc.aio.Channel]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def configure(
        self,
        spec: MachineSpec,
        config: ServerConfig,
        directory: Path,
        hypervisor: Hypervisor | None = None,
    ) -> MachineRecord:
        """Builds the machine, with a QEMU or without; StateError when there is one."""
        if self._configuring:
            raise StateError("this process has its machine", reason="CONFIGURED_ALREADY")
        self._configuring = True
        try:
            self._machine = await Machine.build(spec, config, directory, self._tracing, hypervisor)
        finally:
            self._configuring = self._machine is not None
        self._driver = Driver(self._machine)
        self._machine.engine.on_event = self._driver.guest_event
        self._engine = config.engine.value
        self._run = asyncio.create_task(self._driver.run(), name="machine")
        self._configured.set()
        return self.record()

    @property
    def machine(self) -> Machine:
        """The machine."""
        if self._machine is None:
            raise StateError("the machine is not configured yet", reason="NOT_CONFIGURED")
        return self._machine

    @property
    def driver(self) -> Driver:
        """What carries out its requests."""
        if self._driver is None:
            raise StateError("the machine is not configured yet", reason="NOT_CONFIGURED")
        return self._driver

    def record(self) -> MachineRecord:
        """The machine as its watchers see it."""
        spec = self.machine.spec
        return MachineRecord(
            spec.id,
            spec.name,
            self._engine,
            tuple(self.machine.disks),
            self.driver.published,
            hypervisor=self.machine.hypervisor,
        )

    def request(self, kind: RequestKind) -> None:
        """Queues a state change; without a machine, a stop ends the process."""
        if self._driver is None and kind is RequestKind.STOP:
            self._configured.set()
            return
        self.driver.request(kind)

    async def ended(self) -> None:
        """Returns when the machine has ended, or never came to be."""
        await self._configured.wait()
        if self._run is not None:
            await asyncio.shield(self._run)

    def downstairs(self, _machine_id: str = "") -> Iterable[tuple[str, grpc.aio.Channel]]:
        """Channels to every downstairs the volumes talk to, or talked to."""
        if self._machine is not None:
            volumes = self._machine.volumes()
            # A downstairs that several volumes read from is asked once.
            found = {peer.address: peer for volume in volumes for peer in volume.peers()}
            for peer in found.values():
                self._open(peer)
        return [(address, channel) for address, (_peer, channel) in self._channels.items()]

    def _open(self, peer: Peer) -> None:
        """A channel to the peer, as it was reached last: certificates do not last for ever."""
        before = self._channels.get(peer.address)
        if before is not None:
            if before[0] == peer:
                return
            closing = asyncio.create_task(before[1].close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        self._channels[peer.address] = (peer, open_channel(peer.address, tls=peer.tls))

    async def close(self) -> None:
        """After the end: nothing is left running."""
        if self._run is not None:
            self._run.cancel()
            await asyncio.gather(self._run, return_exceptions=True)
        for _peer, channel in self._channels.values():
            await channel.close()
        if self._closing:
            await asyncio.wait(self._closing)
