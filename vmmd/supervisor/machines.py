"""The machines of this host: at most one process for each id.

Once the daemon stops, callers and watchers are told that it is away, and no state any more: that
its machines end with it is no end of the instances they were made for.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

import grpc

from stairlib.model.errors import (
    AlreadyExistsError,
    LimitError,
    NotFoundError,
    StateError,
    UnavailableError,
)
from stairlib.telemetry.tracing import Tracing
from stairwell.vmmd.v1 import machine_service_pb2 as pb
from vmmd.core.lifecycle import Published
from vmmd.core.machine import MachineRecord
from vmmd.core.request_queue import RequestKind
from vmmd.core.server_config import ServerConfig
from vmmd.engine.core.hypervisor import Hypervisor
from vmmd.mapping import spec_from_message
from vmmd.supervisor.machine_process import MachineProcess

# Each machine is a process with its own interpreter (about 80 MB).
MACHINES_MAX = 256


class Machines:
    """Makes, finds, watches and ends machines."""

    def __init__(
        self,
        config: ServerConfig,
        tracing: Tracing,
        log_level: str,
        directory: Path | None = None,
        hypervisor: Hypervisor | None = None,
    ) -> None:
        """`directory` is for the machines' sockets; a temporary one of its own where it is None.
        `hypervisor` runs the machines, where the configuration's engine is one."""
        self._config = config
        self._hypervisor = hypervisor
        self._tracing = tracing
        self._log_level = log_level
        self._machines: dict[str, MachineProcess] = {}
        self._making: dict[str, asyncio.Lock] = {}
        self._closing = False
        # Unix socket paths must stay under 108 bytes, so this is not below a data directory.
        self._root = directory or Path(tempfile.mkdtemp(prefix="stairwell-vmmd-"))
        self._temporary = directory is None

    async def ensure(self, message: pb.MachineSpec) -> MachineRecord:
        """The machine of that id, made if there is none or the last one has ended."""
        spec_from_message(message)
        self._refuse_when_closing()
        lock = self._making.setdefault(message.id, asyncio.Lock())
        async with lock:
            present = self._machines.get(message.id)
            if present is not None and not present.ended:
                if present.spec != message:
                    raise AlreadyExistsError(
                        f"machine {message.name!r} exists with another specification; "
                        "stop it before creating it anew",
                        reason="MACHINE_EXISTS",
                        machine=message.id,
                    )
                return present.record
            if len(self._machines) >= MACHINES_MAX:
                raise LimitError(f"this host has {MACHINES_MAX} machines already")
            if present is not None:
                await self.delete(message.id)
            return await self._make(message)

    async def _make(self, message: pb.MachineSpec) -> MachineRecord:
        # The same one for the same machine: a hypervisor looks for its disks' sockets there again.
        # A digest, since a path of a socket is 107 characters at most.
        name = hashlib.blake2b(message.id.encode(), digest_size=6).hexdigest()
        directory = self._root / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        engine = self._config.engine.value
        process = MachineProcess(message, engine, directory, self._hypervisor)
        try:
            await process.start(self._config.to_json(), self._tracing, self._log_level)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        self._machines[message.id] = process
        return process.record

    def find(self, machine_id: str) -> MachineProcess:
        """The process of that machine; NotFoundError when there is none."""
        self._refuse_when_closing()
        process = self._machines.get(machine_id)
        if process is None:
            raise NotFoundError("machine", machine_id)
        return process

    def channel(self, machine_id: str) -> grpc.aio.Channel:
        """The channel to a living machine's process; StateError when it has ended."""
        process = self.find(machine_id)
        if process.ended or process.channel is None:
            raise StateError(
                f"machine {process.spec.name!r} has ended ({process.published.state.value})",
                reason="MACHINE_ENDED",
            )
        return process.channel

    def living(self) -> list[MachineProcess]:
        """Every machine that has not ended."""
        return [process for process in self._machines.values() if not process.ended]

    def channels(self, machine_id: str = "") -> list[tuple[str, grpc.aio.Channel]]:
        """The channels to every living machine's process, or to one's, with the machine's name."""
        return [
            (process.spec.name, process.channel)
            for process in self.living()
            if process.channel is not None and machine_id in ("", process.spec.id)
        ]

    def records(self) -> list[MachineRecord]:
        """Every machine that is known, ended ones too."""
        return [process.record for process in self._machines.values()]

    async def request_state(self, machine_id: str, kind: RequestKind) -> MachineRecord:
        """Queues a state change. A stop of an ended machine is already done."""
        process = self.find(machine_id)
        if process.ended and kind is RequestKind.STOP:
            return process.record
        if process.ended:
            raise StateError(
                f"machine {process.spec.name!r} has ended ({process.published.state.value}); "
                "create it again to run it",
                reason="MACHINE_ENDED",
            )
        await process.request_state(kind)
        return process.record

    async def watch(
        self, machine_id: str, after_generation: int
    ) -> AsyncGenerator[tuple[MachineRecord, Published], None]:
        """Each state newer than `after_generation`, until the machine has ended: also for one who
        waits for a state that it does not come to.

        UnavailableError when the daemon stops meanwhile.
        """
        process = self.find(machine_id)
        seen = after_generation
        while True:
            # More may be published while one is being handed out, so look again before ending.
            while seen < process.published.generation:
                self._refuse_when_closing()
                published = next(p for p in process.history if p.generation > seen)
                seen = published.generation
                yield process.record, published
            if process.ended:
                return
            async with process.changed:
                while process.published.generation <= seen and not process.ended:
                    self._refuse_when_closing()
                    await process.changed.wait()

    async def delete(self, machine_id: str) -> None:
        """Stops the machine if it lives, and forgets it."""
        process = self.find(machine_id)
        await process.stop()
        self._machines.pop(machine_id, None)
        self._making.pop(machine_id, None)
        shutil.rmtree(process.directory, ignore_errors=True)

    async def close(self) -> None:
        """Sends the watchers away, then stops every machine in order, all at once."""
        self._closing = True
        for process in self._machines.values():
            async with process.changed:
                process.changed.notify_all()
        await asyncio.gather(*(process.stop() for process in self._machines.values()))
        if self._temporary:
            shutil.rmtree(self._root, ignore_errors=True)

    def _refuse_when_closing(self) -> None:
        """UnavailableError while the daemon stops."""
        if self._closing:
            raise UnavailableError(
                "vmmd is stopping, and its machines with it; start it again", reason="STOPPING"
            )
