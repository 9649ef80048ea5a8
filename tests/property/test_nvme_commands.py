"""Whatever a guest does, the controller never raises, loses a command, or leaves memory."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.vmmd.hw.nvme.rig import MEMORY, Rig
from vmmd.block.backend import BlockOp, BlockStatus, Completion
from vmmd.hw.nvme import bits, prp
from vmmd.hw.segments import gather, scatter

ADDRESSES = st.one_of(
    st.integers(0, MEMORY - 1),
    st.integers(0, MEMORY // 4096 - 1).map(lambda page: page * 4096),
    st.integers(0, 2**64 - 1),
)
DWORDS = st.one_of(st.integers(0, 512), st.integers(0, 2**32 - 1))
FIELDS = st.fixed_dictionaries(
    {
        "namespace": st.sampled_from([0, 1, 1, 1, 2, 0xFFFFFFFF]),
        "prp1": ADDRESSES,
        "prp2": ADDRESSES,
        "cdw10": DWORDS,
        "cdw11": st.one_of(st.just(0), DWORDS),
        "cdw12": st.one_of(st.integers(0, 300), DWORDS),
        "flags": st.sampled_from([0, 0, 0, 1, 0x40]),
        "identifier": st.integers(0, 0xFFFF),
    }
)
OPCODES = st.one_of(st.integers(0, 12), st.integers(0, 255))
STATUSES = st.sampled_from([BlockStatus.OK, BlockStatus.OK, BlockStatus.FAILED])


def enabled() -> Rig:
    rig = Rig()
    rig.enable()
    rig.create_io()
    return rig


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(OPCODES, FIELDS), min_size=1, max_size=12), STATUSES)
def test_every_io_command_completes_once(
    commands: list[tuple[int, dict[str, int]]], status
) -> None:
    rig = enabled()
    wanted = []
    for opcode, fields in commands:
        wanted.append(rig.queue(1, opcode, **dict(fields)))
        rig.ring(1)
    rounds = 0
    while rig.requests:
        rounds += 1
        assert rounds < 70_000
        requests, rig.requests = rig.requests, []
        for request in requests:
            if request.op is not BlockOp.FLUSH:
                assert request.offset >= 0
                assert request.offset + request.length <= rig.info.block_count
            if request.op is BlockOp.WRITE:
                assert request.data is not None
                assert len(request.data) == request.length * rig.info.block_size
        rig.take(
            rig.core.complete(
                [
                    Completion(
                        r.token,
                        status,
                        bytes(r.length * 4096)
                        if r.op is BlockOp.READ and status is BlockStatus.OK
                        else None,
                    )
                    for r in requests
                ]
            )
        )
        if rounds > 300:
            return  # a discard of billions of blocks in pieces: it goes on, which is enough
    if _queues_intact(commands):
        assert sorted(c[0] for c in rig.reap(1)) == sorted(wanted)


def _queues_intact(commands: list[tuple[int, dict[str, int]]]) -> bool:
    """Whether no read was pointed at the queues themselves, where it may overwrite completions."""
    return not any(opcode == bits.IoOpcode.READ for opcode, _ in commands)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(OPCODES, FIELDS), min_size=1, max_size=14))
def test_admin_commands_never_raise(commands: list[tuple[int, dict[str, int]]]) -> None:
    rig = enabled()
    for opcode, fields in commands:
        rig.queue(0, opcode, **dict(fields))
        rig.ring(0)
        rig.ring(1)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.sampled_from([0x14, 0x1C, 0x24, 0x28, 0x30, 0x1000, 0x1004, 0x1008, 0x100C]),
                st.integers(0, 0x3FFF),
            ),
            st.sampled_from([1, 2, 4, 8]),
            st.one_of(st.sampled_from([0, 1, 0x460001, 0x464001]), st.integers(0, 2**64 - 1)),
        ),
        max_size=30,
    ),
    st.binary(max_size=1024),
)
def test_register_accesses_never_raise(writes: list[tuple[int, int, int]], junk: bytes) -> None:
    rig = enabled()
    rig.ram.bytes[0x1000 : 0x1000 + len(junk)] = junk
    for offset, size, value in writes:
        rig.take(rig.core.register_write(offset, size, value))
        assert 0 <= rig.core.register_read(offset, size) < 1 << 8 * size
    rig.requests = rig.requests[:64]
    rig.answer(BlockStatus.FAILED)


@settings(max_examples=200, deadline=None)
@given(
    pages=st.lists(st.integers(0x100, MEMORY // 4096 - 1), min_size=2, max_size=256, unique=True),
    offset=st.integers(0, 1023).map(lambda words: words * 4),
    cut=st.integers(0, 4095),
    list_offset=st.integers(0, 511).map(lambda slots: slots * 8),
)
def test_prp_lists_name_exactly_the_pages(
    pages: list[int], offset: int, cut: int, list_offset: int
) -> None:
    rig = Rig()
    length = len(pages) * 4096 - offset - cut
    addresses = [page * 4096 for page in pages]
    prp2 = _write_list(rig, addresses[1:], list_offset) if len(pages) > 2 else addresses[1]
    if length <= 4096 - offset:
        length = 4096 - offset
    segments = prp.walk(rig.ram, addresses[0] + offset, prp2, length)
    data = bytes(n % 251 for n in range(length))
    scatter(segments, data)
    assert gather(segments) == data
    position = 0
    for number, address in enumerate(addresses):
        start = address + (offset if number == 0 else 0)
        here = min(address + 4096 - start, length - position)
        assert rig.ram.bytes[start : start + here] == data[position : position + here]
        position += here
    assert position == length


def _write_list(rig: Rig, entries: list[int], offset: int) -> int:
    """Puts a chained list into the pages from 0x10000 on, which hold no data in these tests."""
    start = address = 0x10000 + offset
    while entries:
        room = (4096 - address % 4096) // 8
        here = entries if len(entries) <= room else entries[: room - 1]
        for entry in here:
            rig.ram.bytes[address : address + 8] = entry.to_bytes(8, "little")
            address += 8
        entries = entries[len(here) :]
        if entries:
            chained = (address | 0xFFF) + 1
            rig.ram.bytes[address : address + 8] = chained.to_bytes(8, "little")
            address = chained
    return start
