"""Configuration space: identity, write masks, BAR sizing and decode, capability list."""

from __future__ import annotations

from vmmd.hw.pci import bits
from vmmd.hw.pci.bar import Bar, BarKind
from vmmd.hw.pci.cfgspace import Capability, ConfigSpace, Identity

IDENTITY = Identity(0x1DE5, 0x0001, 0x01, 0x08, 0x02, revision=3)


def space(**capabilities: bytes) -> ConfigSpace:
    return ConfigSpace(
        IDENTITY,
        {
            0: Bar(BarKind.MEMORY64, 16 << 10),
            2: Bar(BarKind.IO, 64),
            4: Bar(BarKind.MEMORY32, 4096),
        },
        [
            Capability(0x11, b"\x0f\x00\x04\x00\x00\x00", b"\x00\xc0\x00\x00\x00\x00"),
            Capability(0x09, b"\x04\x00"),
        ],
    )


def test_identity_is_read_only() -> None:
    config = space()
    config.write(bits.VENDOR_ID, 4, 0xDEADBEEF)
    assert config.read(bits.VENDOR_ID, 4) == 0x0001_1DE5
    assert config.read(bits.REVISION_ID, 4) == 0x01080203
    assert config.read(bits.BASE_CLASS, 1) == 0x01


def test_sizing_a_64_bit_bar() -> None:
    config = space()
    config.write(bits.BAR0, 4, 0xFFFFFFFF)
    config.write(bits.BAR0 + 4, 4, 0xFFFFFFFF)
    assert config.read(bits.BAR0, 8) == 0xFFFFFFFF_FFFFC004


def test_sizing_io_and_32_bit_bars() -> None:
    config = space()
    for index, expected in ((2, 0xFFFFFFC1), (4, 0xFFFFF000), (3, 0), (5, 0)):
        config.write(bits.BAR0 + 4 * index, 4, 0xFFFFFFFF)
        assert config.read(bits.BAR0 + 4 * index, 4) == expected


def test_windows_need_their_space_enabled() -> None:
    config = space()
    config.write(bits.BAR0, 8, 0x80_0000_0000)
    config.write(bits.BAR0 + 8, 4, 0x1000)
    assert config.windows() == []
    config.write(bits.COMMAND, 2, bits.COMMAND_MEMORY)
    assert [(w.start, w.end, w.bar) for w in config.windows()] == [
        (0x80_0000_0000, 0x80_0000_4000, 0)
    ]
    config.write(bits.COMMAND, 2, bits.COMMAND_IO)
    assert [(w.start, w.end, w.bar) for w in config.windows()] == [(0x1000, 0x1040, 2)]


def test_capabilities_form_a_list() -> None:
    config = space()
    assert config.read(bits.STATUS, 2) & bits.STATUS_CAPABILITY_LIST
    first = config.read(bits.CAPABILITIES_POINTER, 1)
    assert config.read(first, 1) == 0x11
    second = config.read(first + 1, 1)
    assert config.read(second, 1) == 0x09
    assert config.read(second + 1, 1) == 0
    assert config.capability_offset(0x09) == second


def test_only_masked_capability_bits_change() -> None:
    config = space()
    offset = config.capability_offset(0x11)
    config.write(offset + 2, 2, 0xFFFF)
    assert config.read(offset + 2, 2) == 0xC00F


def test_partial_writes_keep_the_other_bytes() -> None:
    config = space()
    config.write(bits.BAR0 + 16, 4, 0x12345000)
    config.write(bits.BAR0 + 18, 1, 0xAB)
    assert config.read(bits.BAR0 + 16, 4) == 0x12AB5000


def test_beyond_the_end_reads_ones_and_writes_vanish() -> None:
    config = space()
    assert config.read(bits.CONFIG_BYTES - 2, 4) == 0xFFFFFFFF
    config.write(bits.CONFIG_BYTES - 2, 4, 0)
    assert config.read(bits.CONFIG_BYTES - 2, 2) == 0


def test_reset_restores_power_on_but_keeps_multifunction() -> None:
    config = space()
    config.set_multifunction()
    config.write(bits.COMMAND, 2, bits.COMMAND_MEMORY)
    config.write(bits.BAR0, 8, 0x80_0000_0000)
    config.reset()
    assert config.windows() == []
    assert config.command == 0
    assert config.read(bits.HEADER_TYPE, 1) == bits.HEADER_TYPE_MULTIFUNCTION
