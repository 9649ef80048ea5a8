"""Encryption over all shapes of frames, and the nonces of whole lives of a set."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from stairlib.model.cipher import AES_256_GCM, CIPHERS
from stairlib.model.context import empty_contexts, mismatches
from vmmd.upstairs.core.codec import GCM_GENERATION_MAX, CounterNonces, Encryption, Keyring

OWNER = "11111111-1111-1111-1111-111111111111"
SPANS = st.lists(st.tuples(st.integers(0, 1 << 50), st.integers(1, 9)), min_size=1, max_size=6)


@given(
    cipher=st.sampled_from(CIPHERS),
    block_size=st.sampled_from([512, 1024, 4096]),
    spans=SPANS,
    generation=st.integers(1, GCM_GENERATION_MAX),
    seed=st.integers(0, 1 << 30),
    data=st.data(),
)
def test_what_is_sealed_opens_anywhere_else_and_nothing_else_does(
    cipher, block_size, spans, generation, seed, data
) -> None:
    rng = random.Random(seed)
    key = rng.randbytes(32)
    codec = Keyring(Encryption(key, rng.randbytes), block_size).codec(cipher, OWNER)
    again = Keyring(Encryption(key, rng.randbytes), block_size).codec(cipher, OWNER)
    count = sum(length for _first, length in spans)
    guest = rng.randbytes(count * block_size)
    contexts, out = codec.seal(guest, iter(spans), generation)
    # Some blocks were never written.
    holes = data.draw(st.sets(st.integers(0, count - 1)))
    contexts, stored, expected = contexts.copy(), bytearray(out), bytearray(guest)
    for hole in holes:
        contexts[hole] = empty_contexts(1)[0]
        for buffer in (stored, expected):
            buffer[hole * block_size : (hole + 1) * block_size] = bytes(block_size)
    assert mismatches(stored, contexts, block_size, encrypted=True) == []
    assert again.open(memoryview(stored), contexts, iter(spans)) == expected
    stored[data.draw(st.integers(0, len(stored) - 1))] ^= data.draw(st.integers(1, 255))
    assert again.open(memoryview(stored), contexts, iter(spans)) is None
    assert len(mismatches(stored, contexts, block_size, encrypted=True)) == 1


class Life:
    """A set's members as far as fencing goes: each keeps the highest generation and its session."""

    def __init__(self) -> None:
        self.promoted = [(0, 0)] * 3
        self.sessions = 0

    def open_session(self, generation: int, reached: list[int]) -> int | None:
        """The session, if each of the members that were reached accepts it, and all were."""
        self.sessions += 1
        accepted = 0
        for member in reached:
            if generation > self.promoted[member][0]:
                self.promoted[member] = (generation, self.sessions)
                accepted += 1
        return self.sessions if accepted == len(self.promoted) else None


@given(
    attempts=st.lists(
        st.tuples(
            st.integers(1, 6), st.lists(st.sampled_from([0, 1, 2]), unique=True), st.booleans()
        ),
        max_size=20,
    ),
    start=st.integers(0, (1 << 64) - 1),
    frames=st.lists(st.integers(1, 5), min_size=1, max_size=6),
)
def test_nonces_never_repeat_in_the_sessions_of_a_set(attempts, start, frames) -> None:
    """Each upstairs counts from the same place, the worst that chance could do, and any of them may
    go on writing after it was taken over."""
    life = Life()
    sources: list[tuple[CounterNonces, int]] = []
    for generation, reached, everyone in attempts:
        if life.open_session(generation, [0, 1, 2] if everyone else reached) is not None:
            sources.append((CounterNonces(lambda count: start.to_bytes(count, "big")), generation))
    seen: set[bytes] = set()
    blocks = 0
    for count in frames:
        for source, generation in sources:
            nonces = source.take(count, generation)
            seen.update(nonces[at : at + 12] for at in range(0, len(nonces), 12))
            blocks += count
    assert len(seen) == blocks


@given(st.integers(0, 1 << 30), st.integers(1, 4))
def test_activations_of_one_process_with_one_generation_go_on_counting(seed, rounds) -> None:
    keyring = Keyring(Encryption(bytes(32), random.Random(seed).randbytes), 512)
    seen: set[bytes] = set()
    for _round in range(rounds):
        contexts, _out = keyring.codec(AES_256_GCM, OWNER).seal(bytes(3 * 512), [(0, 3)], 9)
        seen.update(row.tobytes()[4:16] for row in contexts)
    assert len(seen) == 3 * rounds
