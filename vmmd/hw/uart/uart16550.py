"""A 16550-compatible UART with FIFOs of one byte, as a pure state machine.

The guest reads and writes eight registers; the host puts received bytes in (`receive`) and takes
transmitted ones out (`take_transmitted`). `interrupt` is the level of the interrupt line after each
call. A byte stays in its register until the other side takes it, so a guest that waits for
THRE is slowed down to what the host takes, and nothing is lost.
"""

from __future__ import annotations

import enum

REGISTERS = 8

_RX_TX, _IER, _IIR_FCR, _LCR, _MCR, _LSR, _MSR, _SCR = range(REGISTERS)

_IER_DATA_READY = 1 << 0
_IER_THRE = 1 << 1
_IER_LINE_STATUS = 1 << 2
_IER_MASK = 0x0F

_LCR_DIVISOR_LATCH = 1 << 7
_MCR_LOOP = 1 << 4

_LSR_DATA_READY = 1 << 0
_LSR_OVERRUN = 1 << 1
_LSR_THRE = 1 << 5
_LSR_IDLE = 1 << 6


class InterruptCause(enum.IntEnum):
    """Values of the interrupt identification register, highest priority first."""

    LINE_STATUS = 0b0110
    DATA_READY = 0b0100
    THRE = 0b0010
    NONE = 0b0001


class Uart16550:
    """One port."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Power-on state; bytes under way are lost."""
        self._interrupt_enable = 0
        self._line_control = 0
        self._modem_control = 0
        self._scratch = 0
        self._divisor = 0
        self._line_status = _LSR_THRE | _LSR_IDLE
        self._thre_pending = False
        self._received = 0
        self._transmitting: int | None = None

    @property
    def interrupt(self) -> bool:
        """Whether the interrupt line is raised."""
        return self._cause() is not InterruptCause.NONE

    @property
    def can_receive(self) -> bool:
        """Whether the receive register is empty."""
        return not self._line_status & _LSR_DATA_READY

    def receive(self, byte: int) -> bool:
        """The host sends a byte; False (and nothing happens) while the last one is unread."""
        assert 0 <= byte <= 0xFF
        if self._modem_control & _MCR_LOOP or not self.can_receive:
            return False
        self._received = byte
        self._line_status |= _LSR_DATA_READY
        return True

    def take_transmitted(self) -> int | None:
        """The byte the guest has sent, if there is one; makes room for the next."""
        byte, self._transmitting = self._transmitting, None
        if byte is not None:
            self._transmitter_empty()
        return byte

    def read(self, register: int) -> int:
        """A guest's read of one register."""
        assert 0 <= register < REGISTERS
        latched = bool(self._line_control & _LCR_DIVISOR_LATCH)
        if register == _RX_TX:
            return self._divisor & 0xFF if latched else self._read_received()
        if register == _IER:
            return self._divisor >> 8 if latched else self._interrupt_enable
        if register == _IIR_FCR:
            cause = self._cause()
            if cause is InterruptCause.THRE:
                self._thre_pending = False
            return int(cause)
        if register == _LSR:
            status = self._line_status
            self._line_status &= ~_LSR_OVERRUN
            return status
        if register == _MSR:
            return 0
        return {
            _LCR: self._line_control,
            _MCR: self._modem_control,
            _SCR: self._scratch,
        }[register]

    def write(self, register: int, value: int) -> None:
        """A guest's write of one register; read-only ones ignore it."""
        assert 0 <= register < REGISTERS
        value &= 0xFF
        latched = bool(self._line_control & _LCR_DIVISOR_LATCH)
        if register == _RX_TX and latched:
            self._divisor = self._divisor & 0xFF00 | value
        elif register == _RX_TX:
            self._transmit(value)
        elif register == _IER and latched:
            self._divisor = self._divisor & 0xFF | value << 8
        elif register == _IER:
            newly = value & ~self._interrupt_enable
            self._interrupt_enable = value & _IER_MASK
            if newly & _IER_THRE and self._line_status & _LSR_THRE:
                self._thre_pending = True
        elif register == _LCR:
            self._line_control = value
        elif register == _MCR:
            self._modem_control = value & _MCR_LOOP
        elif register == _SCR:
            self._scratch = value

    def _read_received(self) -> int:
        self._line_status &= ~_LSR_DATA_READY
        return self._received

    def _transmit(self, value: int) -> None:
        if self._modem_control & _MCR_LOOP:
            if self._line_status & _LSR_DATA_READY:
                self._line_status |= _LSR_OVERRUN
            self._received = value
            self._line_status |= _LSR_DATA_READY
            self._transmitter_empty()
            return
        # A guest that does not wait for THRE overwrites its own byte, as on the real part.
        self._transmitting = value
        self._line_status &= ~(_LSR_THRE | _LSR_IDLE)
        self._thre_pending = False

    def _transmitter_empty(self) -> None:
        self._line_status |= _LSR_THRE | _LSR_IDLE
        self._thre_pending = True

    def _cause(self) -> InterruptCause:
        enabled = self._interrupt_enable
        if enabled & _IER_LINE_STATUS and self._line_status & _LSR_OVERRUN:
            return InterruptCause.LINE_STATUS
        if enabled & _IER_DATA_READY and self._line_status & _LSR_DATA_READY:
            return InterruptCause.DATA_READY
        if enabled & _IER_THRE and self._thre_pending:
            return InterruptCause.THRE
        return InterruptCause.NONE
