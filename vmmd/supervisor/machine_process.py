"""One machine's process as the daemon sees it: started, configured, followed, and missed when it
dies.

The process lives as long as the pipe on its standard input: when the daemon goes, however it goes,
the machine stops in order. Everything it publishes is appended to `history`; watchers wait on
`changed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import deque
from pathlib import Path
from typing import Any

import grpc

from stairlib.model.errors import StateError, UnavailableError
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import translated
from stairlib.telemetry.logs import get_logger
from stairlib.telemetry.tracing import Tracing
from stairwell.vmmd.v1 import machine_process_service_pb2 as process_pb
from stairwell.vmmd.v1 import machine_service_pb2 as machine_pb
from stairwell.vmmd.v1.machine_process_service_pb2_grpc import MachineProcessServiceStub
from vmmd.core.lifecycle import ENDED, MachineState, Published
from vmmd.core.machine import MachineRecord
from vmmd.core.request_queue import RequestKind
from vmmd.engine.core.hypervisor import Hypervisor
from vmmd.mapping import hypervisor_to_message, published_from_message, requested_state_message

log = get_logger(__name__)

# A Python interpreter with gRPC and numpy is up in about a second on an idle core; this allows for
# a busy host.
READY_SECONDS = 30.0
CONFIGURE_SECONDS = 30.0
CALL_SECONDS = 10.0
# A machine that ends flushes its disks first; past this it is killed.
STOP_SECONDS = 45.0
# Published states kept for watchers that come late; a machine publishes about six in its life, and
# two more with each reboot.
HISTORY_MAX = 64


class MachineProcess:
    """The process of one machine. `record` is the latest that is known."""

    def __init__(
        self,
        spec: machine_pb.MachineSpec,
        engine: str,
        directory: Path,
        hypervisor: Hypervisor | None = None,
    ) -> None:
        self.spec = spec
        self.directory = directory
        self.channel: grpc.aio.Channel | None = None
        self.history: deque[Published] = deque([Published()], maxlen=HISTORY_MAX)
        self.changed = asyncio.Condition()
        self._engine = engine
        self._hypervisor = hypervisor
        # As it told last: disks come and go.
        self._disks = tuple(disk.name for disk in spec.disks)
        self._process: asyncio.subprocess.Process | None = None
        self._follower: asyncio.Task[None] | None = None

    @property
    def socket(self) -> Path:
        """Where the process serves the daemon."""
        return self.directory / "machine.sock"

    @property
    def published(self) -> Published:
        """The latest state."""
        return self.history[-1]

    @property
    def ended(self) -> bool:
        """Whether nothing more will be published."""
        return self.published.state in ENDED

    @property
    def record(self) -> MachineRecord:
        """The machine as watchers see it."""
        process_id = self._process.pid if self._process and self._process.returncode is None else 0
        return MachineRecord(
            self.spec.id,
            self.spec.name,
            self._engine,
            self._disks,
            self.published,
            process_id,
            self._hypervisor,
        )

    async def start(self, server_config_json: str, tracing: Tracing, log_level: str) -> None:
        """Starts the process and has it build the machine; StairwellError when it cannot, and then
        nothing of it is left."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "vmmd.machine",
            "--socket",
            str(self.socket),
            "--name",
            self.spec.name or self.spec.id,
            "--log-level",
            log_level,
            stdin=asyncio.subprocess.PIPE,
        )
        self.channel = open_channel(f"unix:{self.socket}", tracing=tracing)
        try:
            await self._until_ready()
            request = process_pb.ConfigureRequest(
                spec=self.spec,
                server_config_json=server_config_json,
                socket_directory=str(self.directory),
                hypervisor=hypervisor_to_message(self._hypervisor) if self._hypervisor else None,
            )
            with translated(f"machine process of {self.spec.name}"):
                stub = MachineProcessServiceStub(self.channel)
                answer = await stub.Configure(request, timeout=CONFIGURE_SECONDS)
        except BaseException:
            await self.kill()
            raise
        self.history[-1] = published_from_message(answer.machine)
        self._follower = asyncio.create_task(self._follow(), name=f"follow {self.spec.id}")

    async def _until_ready(self) -> None:
        assert self.channel is not None
        assert self._process is not None
        ready = asyncio.create_task(self.channel.channel_ready())
        gone = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait(
                {ready, gone}, timeout=READY_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if not ready.done():
                how = f"ended with status {gone.result()}" if gone.done() else "did not answer"
                raise UnavailableError(
                    f"the machine's process {how}; its log says why", reason="MACHINE_PROCESS"
                )
        finally:
            for task in (ready, gone):
                task.cancel()
            await asyncio.gather(ready, gone, return_exceptions=True)

    async def _follow(self) -> None:
        """Copies what the process publishes; when it is gone before its end was published, says
        so."""
        assert self.channel is not None
        assert self._process is not None
        stub = MachineProcessServiceStub(self.channel)
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for message in stub.WatchState(process_pb.WatchStateRequest()):
                await self._publish(published_from_message(message.machine))
        status = await self._process.wait()
        await self.channel.close()
        if not self.ended:
            how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
            log.error("machine process died", machine=self.spec.id, how=how)
            reason = f"the machine's process ended unexpectedly ({how})"
            generation = self.published.generation + 1
            await self._publish(
                Published(MachineState.FAILED, generation, reason, process_died=True)
            )

    async def _publish(self, published: Published) -> None:
        if published.generation <= self.published.generation:
            return
        self.history.append(published)
        log.info(
            "machine state",
            machine=self.spec.id,
            state=published.state.value,
            generation=published.generation,
        )
        async with self.changed:
            self.changed.notify_all()

    async def request_state(self, kind: RequestKind) -> None:
        """Queues a state change with the process; StateError when it refuses."""
        assert self.channel is not None
        request = process_pb.RequestStateRequest(state=requested_state_message(kind))
        with translated(f"machine process of {self.spec.name}"):
            await MachineProcessServiceStub(self.channel).RequestState(
                request, timeout=CALL_SECONDS
            )

    def process_stub(self) -> Any:
        """To call the machine's process by; StateError when it has ended."""
        if self.ended or self.channel is None:
            raise StateError(
                f"machine {self.spec.name!r} has ended ({self.published.state.value})",
                reason="MACHINE_ENDED",
            )
        return MachineProcessServiceStub(self.channel)

    def saw(self, machine: machine_pb.Machine) -> MachineRecord:
        """Takes over which disks there are."""
        self._disks = tuple(machine.disks)
        return self.record

    async def stop(self) -> None:
        """Lets the machine stop in order, and kills it when it does not end within STOP_SECONDS."""
        if self._process is None or self._process.returncode is not None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        except TimeoutError:
            log.error("machine process does not end: killing it", machine=self.spec.id)
            await self.kill()
        if self._follower is not None:
            await self._follower

    async def kill(self) -> None:
        """Ends the process at once."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        if self.channel is not None:
            await self.channel.close()
