"""A disk as an NVMe controller for a hypervisor, on a unix socket, one connection at a time.

    export = VfioUserExport(backend, serial="disk-1", namespace_uuid=uuid, socket="disk.sock")
    await export.start(); ...; await export.stop()

A hypervisor never comes back by itself: when its connection ends, the controller is as after
power-on, and waits for the next one. What was flushed is durable; the rest is as after a power cut.
"""

from __future__ import annotations

import asyncio
import socket as sockets
import threading
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from stairlib.telemetry.logs import get_logger
from vmmd.block.attachment import AttachmentCounters
from vmmd.block.backend import Backend
from vmmd.block.hypervisor_export import HypervisorExport
from vmmd.hw.nvme.controller import VECTORS, InterruptKind, NvmeController
from vmmd.hw.nvme.doorbells import Beside
from vmmd.hw.pci.device import PciFunction
from vmmd.vfio_user.core.conversation import Conversation
from vmmd.vfio_user.core.wire import Irq
from vmmd.vfio_user.interrupts import EventInterrupts
from vmmd.vfio_user.memory import MappedMemory
from vmmd.vfio_user.session import Refused, Session

_log = get_logger(__name__)

_STOP_SECONDS = 5.0
_IRQ_OF = {InterruptKind.MSIX: Irq.MSIX, InterruptKind.MSI: Irq.MSI}


class VfioUserExport(HypervisorExport):
    """See the module. Satisfies `core.conversation.Device`."""

    protocol = "vfio-user"

    def __init__(
        self,
        backend: Backend,
        *,
        serial: str,
        namespace_uuid: UUID,
        socket: Path | str,
        interrupts: InterruptKind = InterruptKind.MSIX,
    ) -> None:
        super().__init__(socket)
        self._memory = MappedMemory()
        self._interrupts = EventInterrupts()
        self._vectors = {_IRQ_OF[interrupts]: VECTORS, Irq.ERROR: 1, Irq.REQUEST: 1}
        self._controller = NvmeController(
            backend,
            serial=serial,
            namespace_uuid=namespace_uuid,
            interrupts=interrupts,
            beside=Beside(_Barrier(), _later),
            fire=self._interrupts.fire,
        )
        self._controller.attach(self._memory, _no_message)
        self._session: Session | None = None

    @property
    def counters(self) -> AttachmentCounters:
        """What it asked of its backend so far."""
        return self._controller.counters

    async def stop(self) -> None:
        """Stops listening, hangs up, and waits a moment for what is in flight."""
        self.stop_listening()
        if self._session is not None:
            self._session.close()
        idle = asyncio.Event()
        self._controller.pause(idle.set)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await idle.wait()
        except TimeoutError:
            count = self._controller.in_flight
            _log.warning("vfio-user requests left at stop", count=count)
        self._controller.halt()

    def begin(self, connection: sockets.socket) -> None:
        """As HypervisorExport."""
        self._session = Session(connection, self._converse, self._controller.gathering, self._ended)

    def _converse(self, refused: Refused) -> Conversation:
        return Conversation(self, self._memory, self._interrupts, self._vectors, refused)

    def _ended(self) -> None:
        """The guest's memory is given back: nothing in flight touches it from now on."""
        self._session = None
        self._interrupts.close()
        self._controller.reset()
        self._memory.clear()
        self.ended()

    # --- the conversation's calls

    @property
    def function(self) -> PciFunction:
        """As Device.function."""
        return self._controller

    def memory_changed(self) -> None:
        """As Device.memory_changed."""
        self._controller.memory_changed()

    def reset(self) -> None:
        """As Device.reset."""
        self._controller.reset()
        self._interrupts.forget()


class _Barrier:
    """Taking a lock orders memory as the processor's full barrier does; nobody else takes it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            pass


def _later(call: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(call)


def _no_message(_address: int, _data: int) -> None:
    """Interrupts go by eventfd."""
