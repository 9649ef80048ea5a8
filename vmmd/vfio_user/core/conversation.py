"""What each message does to a PCI function. Pure: bytes and descriptor numbers in, bytes out.

    answer = conversation.take(head, payload, files)     # empty where none is wanted

Memory, interrupts and the function come from outside. A descriptor that is taken over is removed
from `files`; the caller closes the others. Nothing here waits: an access that starts I/O returns
before that has begun.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from vmmd.hw.pci.device import PciFunction
from vmmd.vfio_user.core import wire
from vmmd.vfio_user.core.wire import Access, Command, DmaMap, Header, Irq, IrqData, RequestError

CONFIG_BYTES = 256
# Registers are accessed as a processor does it.
_ACCESS_SIZES = (1, 2, 4, 8)
_IRQ_KINDS = len(Irq)


class DmaMemory(Protocol):
    """Guest memory as far as a conversation changes it."""

    def map(self, piece: DmaMap, file: int) -> None:
        """Adds a piece, whose file stays the caller's; RequestError when it cannot be."""
        ...

    def unmap(self, address: int, size: int) -> None:
        """Forgets all pieces inside the range; RequestError when one lies across its border."""
        ...


class Interrupts(Protocol):
    """Where interrupts go."""

    def use(self, irq: Irq, start: int, files: Sequence[int]) -> None:
        """The descriptors of vectors from `start` on, taken over."""
        ...

    def drop(self, irq: Irq, start: int, count: int) -> None:
        """These vectors have none any more."""
        ...

    def fire(self, vector: int) -> None:
        """Raises it."""
        ...


class Device(Protocol):
    """The function, and what else a message asks of it."""

    @property
    def function(self) -> PciFunction:
        """Its configuration space and BARs."""
        ...

    def memory_changed(self) -> None:
        """Called at once, before a range that is gone is answered as gone."""
        ...

    def reset(self) -> None:
        """Power-on state; does not wait."""
        ...


class Conversation:
    """One connection's. VERSION comes first; ProtocolError otherwise."""

    def __init__(
        self,
        device: Device,
        memory: DmaMemory,
        interrupts: Interrupts,
        vectors: Mapping[Irq, int],
        refused: Callable[[Header, str], None],
    ) -> None:
        """`vectors`: how many interrupts there are of a kind."""
        self._refused = refused
        self._device = device
        self._memory = memory
        self._interrupts = interrupts
        self._vectors = vectors
        self._begun = False
        bars = device.function.config.bars
        self._sizes = {index: bar.size for index, bar in bars.items()}
        self._sizes[wire.CONFIG_REGION] = CONFIG_BYTES

    def take(self, head: Header, payload: bytes, files: list[int]) -> bytes:
        """The answer to a message. One that cannot be done is told to `refused`, and answered with
        its errno. ProtocolError ends it all."""
        if not self._begun and head.command != Command.VERSION:
            raise wire.ProtocolError(f"command {head.command} before the version")
        try:
            answer = self._obey(head.command, payload, files)
        except RequestError as error:
            self._refused(head, str(error))
            return wire.refusal(head, error.number) if head.wants_reply else b""
        return wire.reply(head, answer) if head.wants_reply else b""

    def _obey(self, command: int, payload: bytes, files: list[int]) -> bytes:
        # The most frequent ones first.
        if command == Command.REGION_WRITE:
            access = wire.write_access(payload)
            self._write(access)
            return wire.access_payload(access)
        if command == Command.REGION_READ:
            access = wire.read_access(payload)
            return wire.access_payload(access, self._read(access))
        match command:
            case Command.REGION_WRITE_MULTI:
                accesses = list(wire.write_accesses(payload))
                for access in accesses:
                    self._write(access)
                return wire.multi_payload(len(accesses))
            case Command.VERSION:
                wire.version(payload)
                self._begun = True
                return wire.version_payload()
            case Command.DMA_MAP:
                self._map(wire.dma_map(payload), files)
                return b""
            case Command.DMA_UNMAP:
                self._unmap(wire.dma_unmap(payload))
                return payload
            case Command.DEVICE_SET_IRQS:
                self._set_irqs(wire.irq_set(payload), files)
                return b""
            case Command.DEVICE_RESET:
                self._device.reset()
                return b""
            case _:
                return self._tell(command, payload)

    def _tell(self, command: int, payload: bytes) -> bytes:
        if command == Command.DEVICE_GET_INFO:
            return wire.device_info_payload(irqs=_IRQ_KINDS)
        if command == Command.DEVICE_GET_REGION_INFO:
            index = wire.region_index(payload)
            if index >= wire.REGIONS:
                raise RequestError(errno.EINVAL, f"region {index}")
            return wire.region_info_payload(index, self._sizes.get(index, 0))
        if command == Command.DEVICE_GET_IRQ_INFO:
            irq = _irq(wire.irq_index(payload))
            return wire.irq_info_payload(irq, self._vectors.get(irq, 0))
        raise RequestError(errno.ENOTSUP, f"command {command}")

    # --- regions

    def _check(self, access: Access) -> None:
        size = self._sizes.get(access.region, 0)
        end = access.offset + access.size
        if not 0 < access.size <= wire.TRANSFER_BYTES_MAX or end > size:
            text = f"{access.size} bytes at {access.offset:#x} of region {access.region}"
            raise RequestError(errno.EINVAL, text)
        if access.region != wire.CONFIG_REGION and access.size not in _ACCESS_SIZES:
            raise RequestError(errno.EINVAL, f"an access to {access.size} bytes of registers")

    def _read(self, access: Access) -> bytes:
        self._check(access)
        function = self._device.function
        if access.region == wire.CONFIG_REGION:
            value = function.config_read(access.offset, access.size)
        else:
            value = function.bar_read(access.region, access.offset, access.size)
        return value.to_bytes(access.size, "little")

    def _write(self, access: Access) -> None:
        self._check(access)
        function = self._device.function
        value = int.from_bytes(access.data, "little")
        if access.region == wire.CONFIG_REGION:
            function.config_write(access.offset, access.size, value)
        else:
            function.bar_write(access.region, access.offset, access.size, value)

    # --- memory

    def _map(self, piece: DmaMap, files: list[int]) -> None:
        if not files:
            return  # firmware and the like: nothing that a disk is read into
        if len(files) > 1:
            raise RequestError(errno.EINVAL, f"{len(files)} files for one piece of memory")
        self._memory.map(piece, files[0])
        self._device.memory_changed()

    def _unmap(self, piece: wire.DmaUnmap) -> None:
        if piece.flags & wire.UNMAP_ALL:
            self._memory.unmap(0, 1 << 64)
        elif piece.flags:
            raise RequestError(errno.EINVAL, f"memory to unmap with flags {piece.flags:#x}")
        else:
            self._memory.unmap(piece.address, piece.size)
        self._device.memory_changed()

    # --- interrupts

    def _set_irqs(self, wanted: wire.IrqSet, files: list[int]) -> None:
        irq = _irq(wanted.kind)
        there = self._vectors.get(irq, 0)
        if wanted.start + wanted.number > there:
            text = f"interrupts {wanted.start} and {wanted.number} more of {there}"
            raise RequestError(errno.EINVAL, text)
        if wanted.data is IrqData.EVENTFD:
            if len(files) > wanted.number:
                raise RequestError(errno.EINVAL, f"{len(files)} files for {wanted.number}")
            # Fewer than are named: the others have none.
            self._interrupts.drop(irq, wanted.start, wanted.number)
            taken, files[:] = list(files), []
            self._interrupts.use(irq, wanted.start, taken)
        elif wanted.data is IrqData.NONE and wanted.number == 0:
            self._interrupts.drop(irq, 0, there)
        elif irq in (Irq.MSI, Irq.MSIX):
            for number in range(wanted.number):
                if wanted.data is IrqData.NONE or wanted.states[number]:
                    self._interrupts.fire(wanted.start + number)


def _irq(index: int) -> Irq:
    try:
        return Irq(index)
    except ValueError:
        raise RequestError(errno.EINVAL, f"interrupts of kind {index}") from None
