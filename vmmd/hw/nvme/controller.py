"""The NVMe controller as a PCI function: configuration space, BAR0, interrupts, and its backend.

BAR0 holds the registers and doorbells (16 KiB, 64-bit), BAR4 the MSI-X table. Decisions are in
`core`; this joins it to a backend. A backend may complete inside `submit`, so requests that arise
meanwhile wait in a list instead of nesting calls.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from uuid import UUID

from vmmd.block.attachment import Attachment, AttachmentCounters
from vmmd.block.backend import Backend, Completion, Request
from vmmd.hw.memory import GuestMemory
from vmmd.hw.nvme import features, identify
from vmmd.hw.nvme.core import Effects, NvmeCore
from vmmd.hw.nvme.doorbells import Beside
from vmmd.hw.pci.bar import Bar, BarKind
from vmmd.hw.pci.cfgspace import Capability, ConfigSpace, Identity, express_capability
from vmmd.hw.pci.device import PciFunction
from vmmd.hw.pci.msi import Msi
from vmmd.hw.pci.msix import MsixTable, SendMessage

REGISTERS_BAR = 0
REGISTERS_BAR_BYTES = 16 << 10
MSIX_BAR = 4
# One for each completion queue there can be.
VECTORS = features.IO_QUEUES_MAX + 1

_CLASS_STORAGE = 0x01
_SUB_CLASS_NVM = 0x08
_INTERFACE_NVME = 0x02


class InterruptKind(enum.Enum):
    """Which capability the function has."""

    MSIX = "msi-x"
    MSI = "msi"


class NvmeController(PciFunction):
    """One controller with one namespace, backed by `backend`.

    `serial` is cut to 20 ASCII characters; `namespace_uuid` identifies the disk to the guest, and
    no other of its disks has it. `beside` is given where the guest runs on processors of its own.
    With `fire` interrupts go there by their vector: a hypervisor keeps the tables and masks.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        serial: str,
        namespace_uuid: UUID,
        interrupts: InterruptKind = InterruptKind.MSIX,
        beside: Beside | None = None,
        fire: Callable[[int], None] | None = None,
    ) -> None:
        bars = {REGISTERS_BAR: Bar(BarKind.MEMORY64, REGISTERS_BAR_BYTES)}
        table: MsixTable | Msi
        if interrupts is InterruptKind.MSIX:
            table = msix = MsixTable(VECTORS, MSIX_BAR, self._deliver)
            bars[MSIX_BAR] = msix.bar
            config = _config(bars, table.capability())
            super().__init__(config, msix=msix, msix_bar=MSIX_BAR)
        else:
            table = msi = Msi(VECTORS, self._deliver)
            super().__init__(_config(bars, table.capability()), msi=msi)
        self._fire = fire or table.fire
        self._attachment = Attachment(backend)
        identity = identify.NvmeIdentity(serial, namespace_uuid)
        self._beside = beside
        self._core = NvmeCore(
            self._attachment.info,
            identity,
            self._attachment.counters,
            VECTORS,
            barrier=beside.barrier if beside else None,
        )
        self._waiting: list[Request] = []
        self._vectors: set[int] = set()
        self._gathering = False
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
        if index != REGISTERS_BAR:
            return super().register_read(index, offset, size)
        return self._core.register_read(offset, size)

    def register_write(self, index: int, offset: int, size: int, value: int) -> None:
        """A guest's store to BAR0: a doorbell starts work before this returns."""
        if index == REGISTERS_BAR:
            self._carry_out(self._core.register_write(offset, size, value))

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """What several accesses cause is done together at the end: one batch for the backend, and
        each vector once."""
        assert not self._gathering
        self._gathering = True
        try:
            yield
        finally:
            self._gathering = False
            self._carry_out(Effects())

    def memory_changed(self) -> None:
        """The guest's memory was mapped anew, or some of it no longer is: call it at once, since
        until then views of the old mapping may be written to."""
        self._carry_out(self._core.memory_changed())

    def pause(self, paused: Callable[[], None]) -> None:
        """Issues nothing new; `paused` is called when nothing is in flight, perhaps at once."""
        self._core.pause()
        self._attachment.when_idle(partial(self._settled, paused))

    def resume(self) -> None:
        """Goes on, with the doorbells rung meanwhile."""
        self._carry_out(self._core.resume())

    def reset(self) -> None:
        """Power-on state of registers, queues, BARs and interrupts. Requests in flight come to
        nothing: a guest that has to know waits for a pause first."""
        super().reset()
        self._core.reset()
        self._vectors.clear()

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
        self._vectors |= effects.vectors
        self._waiting += effects.requests
        if effects.again:
            assert self._beside is not None
            self._beside.later(self._again)
        if self._gathering:
            return
        self._interrupt()
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

    def _interrupt(self) -> None:
        vectors, self._vectors = self._vectors, set()
        for vector in sorted(vectors):
            self._fire(vector)

    def _again(self) -> None:
        self._carry_out(self._core.process())

    def _completed(self, completions: Sequence[Completion]) -> None:
        self._carry_out(self._core.complete(completions))


def _config(bars: dict[int, Bar], interrupts: Capability) -> ConfigSpace:
    identity = Identity(
        vendor=identify.VENDOR,
        device=identify.DEVICE,
        base_class=_CLASS_STORAGE,
        sub_class=_SUB_CLASS_NVM,
        interface=_INTERFACE_NVME,
        subsystem_vendor=identify.VENDOR,
    )
    return ConfigSpace(identity, bars, [interrupts, express_capability()])
