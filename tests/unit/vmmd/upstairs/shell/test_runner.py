"""What the runner makes of effects before it carries them out."""

from __future__ import annotations

from vmmd.upstairs.core.events import CompleteGuest, SendFrame
from vmmd.upstairs.shell.runner import JOINED_BUFFERS_MAX, _joined


def test_frames_that_follow_one_another_to_the_same_links_are_one_to_send():
    done = CompleteGuest("key", [])
    assert _joined(
        [
            SendFrame((1, 2), [b"write"]),
            SendFrame((1, 2), [b"flush", b"more"]),
            SendFrame((1,), [b"read"]),
            SendFrame((1, 2), [b"write"]),
            done,
            SendFrame((1, 2), [b"last"]),
        ]
    ) == [
        SendFrame((1, 2), [b"write", b"flush", b"more"]),
        SendFrame((1,), [b"read"]),
        SendFrame((1, 2), [b"write"]),
        done,
        SendFrame((1, 2), [b"last"]),
    ]


def test_a_replay_is_sent_in_pieces():
    frames = [SendFrame((3,), [b"%d" % number]) for number in range(3 * JOINED_BUFFERS_MAX + 1)]
    joined = _joined(frames)
    assert [len(effect.buffers) for effect in joined] == [JOINED_BUFFERS_MAX] * 3 + [1]
    assert b"".join(b"".join(effect.buffers) for effect in joined) == b"".join(
        b"".join(frame.buffers) for frame in frames
    )
