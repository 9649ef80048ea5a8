"""The built-in guest's side of its serial port: it says what it found, and echoes what is typed.
The line "panic" has it panic, as a write to /proc/sysrq-trigger has a Linux.

    port = GuestConsole(said=history.append, panic=lambda: None)
    port.greet("started", {"block2": "67108864 bytes in blocks of 4096"})
    port.typed(b"hello")             # said gets b"hello"

It goes through the registers of the UART, a byte at a time, as a driver without interrupts does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vmmd.hw.uart.uart16550 import Uart16550

_DATA, _LINE_STATUS = 0, 5
_DATA_READY, _TRANSMITTER_EMPTY = 1 << 0, 1 << 5
_PANIC_LINE = b"panic"


class GuestConsole:
    """A UART and its driver. `said` gets what the guest has sent; `panic` is called when it is to
    panic."""

    def __init__(self, said: Callable[[bytes], None], panic: Callable[[], None]) -> None:
        self._uart = Uart16550()
        self._said = said
        self._panic = panic
        # Of the line that is typed, as much as is ever compared.
        self._line = b""

    def reset(self) -> None:
        """The machine is being reset."""
        self._uart.reset()
        self._line = b""

    def greet(self, word: str, disks: Mapping[str, str]) -> None:
        """One line for the guest and one for each disk."""
        lines = [f"stairwell built-in guest {word}: no processor, {len(disks)} disk(s)"]
        lines += [f"  {name}: {text}" for name, text in sorted(disks.items())]
        self._send("".join(f"{line}\r\n" for line in lines).encode())

    def typed(self, data: bytes) -> None:
        """Bytes from whoever is attached; each is read by the guest and sent back."""
        for byte in data:
            taken = self._uart.receive(byte)
            assert taken, "the guest reads each byte at once"
            assert self._uart.read(_LINE_STATUS) & _DATA_READY
            read = self._uart.read(_DATA)
            ended = read == ord("\r")
            self._send(b"\r\n" if ended else bytes([read]))
            if ended and self._line == _PANIC_LINE:
                self._panic()
            self._line = b"" if ended else (self._line + bytes([read]))[: len(_PANIC_LINE) + 1]

    def _send(self, data: bytes) -> None:
        sent = bytearray()
        for byte in data:
            assert self._uart.read(_LINE_STATUS) & _TRANSMITTER_EMPTY
            self._uart.write(_DATA, byte)
            taken = self._uart.take_transmitted()
            assert taken is not None
            sent.append(taken)
        self._said(bytes(sent))
