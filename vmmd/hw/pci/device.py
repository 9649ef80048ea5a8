"""A PCI function: configuration space, BARs, MSI or MSI-X, and a device's life.

Life (the order of calls is the machine's to keep): attach once, start once, then any number of
pause → (paused) → resume, with reset or halt only while paused. Devices do nothing on their own
before start, and hold what a guest asks of them while paused.
"""

from __future__ import annotations

from collections.abc import Callable

from vmmd.hw.memory import GuestMemory
from vmmd.hw.pci import bits
from vmmd.hw.pci.cfgspace import ConfigSpace
from vmmd.hw.pci.msi import Msi
from vmmd.hw.pci.msix import MsixTable, SendMessage


class PciFunction:
    """Base of every emulated function. Subclasses say what lies behind the BARs."""

    def __init__(
        self,
        config: ConfigSpace,
        *,
        msix: MsixTable | None = None,
        msix_bar: int = -1,
        msi: Msi | None = None,
    ) -> None:
        self.config = config
        self._msix = msix
        self._msix_bar = msix_bar
        self._msi = msi
        if msi is not None:
            msi.bind(config)
        self._memory: GuestMemory | None = None
        self._send: SendMessage | None = None

    def attach(self, memory: GuestMemory, send: SendMessage) -> None:
        """Plugs the function in: the memory it reaches, and where its interrupt messages go."""
        assert self._memory is None
        self._memory = memory
        self._send = send

    def config_read(self, offset: int, size: int) -> int:
        """A guest's read of configuration space."""
        return self.config.read(offset, size)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """A guest's write of configuration space."""
        self.config.write(offset, size, value)
        if self._msix is not None:
            control = self.config.capability_offset(bits.CAPABILITY_MSIX) + 2
            if offset < control + 2 and offset + size > control:
                self._msix.control_written(self.config.read(control, 2))
        if self._msi is not None:
            self._msi.config_written()

    def bar_read(self, index: int, offset: int, size: int) -> int:
        """A guest's read at `offset` of BAR `index`."""
        if self._msix is not None and index == self._msix_bar:
            return self._msix.read(offset, size)
        return self.register_read(index, offset, size)

    def bar_write(self, index: int, offset: int, size: int, value: int) -> None:
        """A guest's write at `offset` of BAR `index`."""
        if self._msix is not None and index == self._msix_bar:
            self._msix.write(offset, size, value)
        else:
            self.register_write(index, offset, size, value)

    def register_read(self, index: int, offset: int, size: int) -> int:
        """What the device itself answers; all ones by default."""
        del index, offset
        return bits.all_ones(size)

    def register_write(self, index: int, offset: int, size: int, value: int) -> None:
        """What the device itself does with a write; nothing by default."""

    def start(self) -> None:
        """The machine runs for the first time."""

    def pause(self, paused: Callable[[], None]) -> None:
        """Stop issuing work; `paused` is called once nothing is in flight, perhaps at once."""
        paused()

    def resume(self) -> None:
        """Go on after a pause."""

    def reset(self) -> None:
        """Back to power-on state; only while paused."""
        self.config.reset()
        if self._msix is not None:
            self._msix.reset()

    def halt(self) -> None:
        """The end; only while paused."""

    def _deliver(self, address: int, data: int) -> None:
        """For the MSI-X table: messages before the function is plugged in go nowhere."""
        if self._send is not None:
            self._send(address, data)
