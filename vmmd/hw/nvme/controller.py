"""The NVMe controller as a PCI function: configuration space, BAR0, MSI-X, and its backend.

BAR0 holds the registers and doorbells (16 KiB, 64-bit), BAR4 the MSI-X table. Decisions are in
`core`; this joins it to a backend. A backend may complete inside `submit`, so requests that arise
meanwhile wait in a list instead of nesting calls.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from uuid import UUID

from vmmd.block.attachment import Attachment, AttachmentCounters
from vmmd.block.backend import Backend, Completion, Request
from vmmd.hw.memory import GuestMemory
from vmmd.hw.nvme import admin, identify
from vmmd.hw.nvme.core import Effects, NvmeCore
from vmmd.hw.pci.bar import Bar, BarKind
from vmmd.hw.pci.cfgspace import ConfigSpace, Identity
from vmmd.hw.pci.device import PciFunction
from vmmd.hw.pci.msix import MsixTable, SendMessage

REGISTERS_BAR = 0
REGISTERS_BAR_BYTES = 16 << 10
MSIX_BAR = 4
# One for each completion queue there can be.
VECTORS = admin.IO_QUEUES_MAX + 1

_CLASS_STORAGE = 0x01
_SUB_CLASS_NVM = 0x08
_INTERFACE_NVME = 0x02


class NvmeController(PciFunction):
    """One controller with one namespace, backed by `backend`.

    `serial` is cut to 20 ASCII characters; `namespace_uuid` identifies the disk to the guest.
    """

    def __init__(
        self, backend: Backend, *, serial: str, namespace_uuid: UUID = identify.NO_UUID
    ) -> None:
        msix = MsixTable(VECTORS, MSIX_BAR, self._deliver)
        config = ConfigSpace(
            Identity(
                vendor=identify.VENDOR,
                device=identify.DEVICE,
                base_class=_CLASS_STORAGE,
                sub_class=_SUB_CLASS_NVM,
                interface=_INTERFACE_NVME,
                subsystem_vendor=identify.VENDOR,
            ),
            {REGISTERS_BAR: Bar(BarKind.MEMORY64, REGISTERS_BAR_BYTES), MSIX_BAR: msix.bar},
            [msix.capability()],
        )
        super().__init__(config, msix=msix, msix_bar=MSIX_BAR)
        self._vectors = msix
        self._attachment = Attachment(backend)
        identity = identify.NvmeIdentity(serial=serial, namespace_uuid=namespace_uuid)
        self._core = NvmeCore(self._attachment.info, identity, self._attachment.counters, VECTORS)
        self._waiting: list[Request] = []
        self._submitting = False
        self._when_submitted: list[Callable[[], None]] = []

    @property
    def counters(self) -> AttachmentCounters:
        """What it asked of its backend so far."""
        return self._attachment.counters

    @property
    def in_flight(self) -> int:
        """Requests at the backend."""
        return self._attachment.in_flight

    def attach(self, memory: GuestMemory, send: SendMessage) -> None:
        """Plugs the controller in."""
        super().attach(memory, send)
        self._core.connect(memory)

    def register_read(self, index: int, offset: int, size: int) -> int:
        """A guest's load from BAR0."""
        assert index == REGISTERS_BAR
        return self._core.register_read(offset, size)

    def register_write(self, index: int, offset: int, size: int, value: int) -> None:
        """A guest's store to BAR0: a doorbell starts work before this returns."""
        assert index == REGISTERS_BAR
        self._carry_out(self._core.register_write(offset, size, value))

    def pause(self, paused: Callable[[], None]) -> None:
        """Issues nothing new; `paused` is called when nothing is in flight, perhaps at once."""
        self._core.pause()
        self._attachment.when_idle(partial(self._settled, paused))

    def resume(self) -> None:
        """Goes on, with the doorbells rung meanwhile."""
        self._carry_out(self._core.resume())

    def reset(self) -> None:
        """Power-on state of registers, queues, BARs and MSI-X; only while paused."""
        super().reset()
        self._core.reset()

    def halt(self) -> None:
        """The end: queues are gone and stay gone."""
        self._core.pause()
        self._core.reset()

    def _settled(self, paused: Callable[[], None]) -> None:
        """Idle, unless a completion has just led to another request (the flush of a FUA write)."""
        if self._submitting:
            self._when_submitted.append(paused)
        else:
            paused()

    def _carry_out(self, effects: Effects) -> None:
        for vector in sorted(effects.vectors):
            self._vectors.fire(vector)
        self._waiting.extend(effects.requests)
        if self._submitting:
            return
        self._submitting = True
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                self._attachment.submit(batch, self._completed)
        finally:
            self._submitting = False
        if self._when_submitted:
            callbacks, self._when_submitted = self._when_submitted, []
            for callback in callbacks:
                self._attachment.when_idle(partial(self._settled, callback))

    def _completed(self, completions: list[Completion]) -> None:
        self._carry_out(self._core.complete(completions))
