"""The UART: data both ways, interrupt priorities, loopback, the divisor latch."""

from __future__ import annotations

import pytest

from vmmd.hw.uart.uart16550 import InterruptCause, Uart16550

DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(8)


@pytest.fixture
def uart() -> Uart16550:
    return Uart16550()


def test_power_on(uart: Uart16550) -> None:
    assert uart.read(LSR) == 0x60
    assert uart.read(IIR) == InterruptCause.NONE
    assert not uart.interrupt


def test_a_byte_out_waits_until_it_is_taken(uart: Uart16550) -> None:
    uart.write(DATA, 0x41)
    assert uart.read(LSR) == 0
    assert uart.take_transmitted() == 0x41
    assert uart.read(LSR) == 0x60
    assert uart.take_transmitted() is None


def test_a_byte_in_waits_until_it_is_read(uart: Uart16550) -> None:
    assert uart.receive(7)
    assert not uart.can_receive
    assert not uart.receive(8)
    assert uart.read(LSR) & 1
    assert uart.read(DATA) == 7
    assert uart.receive(8)


def test_interrupts_by_priority(uart: Uart16550) -> None:
    uart.write(IER, 0x07)
    uart.receive(1)
    assert uart.read(IIR) == InterruptCause.DATA_READY
    uart.read(DATA)
    assert uart.read(IIR) == InterruptCause.THRE
    assert uart.read(IIR) == InterruptCause.NONE
    uart.write(DATA, 1)
    assert not uart.interrupt
    uart.take_transmitted()
    assert uart.interrupt


def test_disabled_causes_raise_nothing(uart: Uart16550) -> None:
    uart.receive(1)
    assert not uart.interrupt
    uart.write(IER, 0x01)
    assert uart.interrupt


def test_loopback_and_overrun(uart: Uart16550) -> None:
    uart.write(MCR, 0x10)
    uart.write(IER, 0x04)
    assert not uart.receive(9)
    uart.write(DATA, 1)
    uart.write(DATA, 2)
    assert uart.take_transmitted() is None
    assert uart.read(IIR) == InterruptCause.LINE_STATUS
    assert uart.read(LSR) & 2
    assert not uart.read(LSR) & 2
    assert uart.read(DATA) == 2


def test_divisor_latch_and_scratch(uart: Uart16550) -> None:
    uart.write(LCR, 0x83)
    uart.write(DATA, 0x34)
    uart.write(IER, 0x12)
    assert (uart.read(DATA), uart.read(IER)) == (0x34, 0x12)
    uart.write(LCR, 0x03)
    assert uart.read(IER) == 0
    assert uart.take_transmitted() is None
    uart.write(SCR, 0x5A)
    uart.write(LSR, 0)
    assert (uart.read(SCR), uart.read(LSR), uart.read(MSR)) == (0x5A, 0x60, 0)
