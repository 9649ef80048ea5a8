"""What goes into the core and what comes out. Plain data: no sockets, no clock.

A *link* is one attempt to connect to one downstairs, numbered by the core and never used again;
events for a link that the core has given up are ignored, so that late news cannot harm. A *key* is
opaque to the core: the shell puts in what it wants back with the answer.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stairlib.model.errors import StairwellError
from stairlib.wire.frame import Bytes, Frame
from vmmd.block.backend import Completion, Request
from vmmd.upstairs.core.repair_limits import RepairLimits


@dataclass(frozen=True, slots=True, eq=False)
class ExtentStamps:
    """Per extent, in order: generation and number of its last flush, and FLAG_* bits."""

    generations: npt.NDArray[np.uint64]
    flushes: npt.NDArray[np.uint64]
    flags: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class SessionInfo:
    """What an opened session tells. `owned_before`: the region belonged to this upstairs id
    already. `cipher`: how its blocks are encrypted, empty for not at all. `owner_id`: whose they
    are."""

    region_id: str
    stamps: ExtentStamps
    owned_before: bool
    cipher: str = ""
    owner_id: str = ""


# ---- events


class GuestBatch(NamedTuple):
    """The guest requests of one loop turn: (key, requests) as submitted. Unordered among
    themselves."""

    submissions: Sequence[tuple[object, Sequence[Request]]]


class SlotReply(NamedTuple):
    """A REPLY frame. Its buffers need to stay valid only until the effects were carried out."""

    link: int
    frame: Frame


@dataclass(frozen=True, slots=True)
class Connected:
    """The session is open and its data connection stands."""

    link: int
    session: SessionInfo


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The link is gone, or never came about. `code` is the typed refusal's reason, if it was
    refused."""

    link: int
    reason: str
    code: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """The daemon ended the session and says why."""

    link: int
    text: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; to be sent a few times a second."""


@dataclass(frozen=True, slots=True)
class SendHeld:
    """The time of a SendHeldAfter is over."""


@dataclass(frozen=True, slots=True)
class SendBehind:
    """The time of a SendBehindAfter is over."""


@dataclass(frozen=True, slots=True)
class Activate:
    """Answered when active, or with the error that prevents it. None keeps the present
    generation."""

    key: object
    generation: int | None = None


@dataclass(frozen=True, slots=True)
class Deactivate:
    """Answered when everything is flushed and all members are let go; always ends."""

    key: object


@dataclass(frozen=True, slots=True)
class Replace:
    """Answered at once with a `Replacement`."""

    key: object
    old: str
    new: str
    replacement_id: str = ""


@dataclass(frozen=True, slots=True)
class TakeBack:
    """Answered at once with whether `old` was being replaced by `new`, which is now over: a
    `Replace` of that id that comes later is refused."""

    key: object
    old: str
    new: str
    replacement_id: str = ""


@dataclass(frozen=True, slots=True)
class HoldRepair:
    """Nothing is copied to the slot, whoever fills it, until it is not held any more."""

    slot: int
    held: bool


@dataclass(frozen=True, slots=True)
class RepairMember:
    """Answered at once: the member of the slot leaves service and is filled anew; with `whole`
    every block is compared, whatever the stamps say."""

    key: object
    slot: int
    whole: bool
    reason: str


@dataclass(frozen=True, slots=True)
class SetRepairLimit:
    """Bounds repair traffic; takes effect on running repairs."""

    limits: RepairLimits


@dataclass(frozen=True, slots=True)
class Verify:
    """Answered with `Digests` of all active members at one place in the order of writes."""

    key: object


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Answered with `SnapshotTaken` once all three members have it, or refused."""

    key: object
    name: str


@dataclass(frozen=True, slots=True)
class RepairTrace:
    """The trace context that the copies of the running repair of `slot` are to carry."""

    slot: int
    traceparent: str


Event = (
    GuestBatch
    | SlotReply
    | Connected
    | Disconnected
    | Notice
    | Tick
    | SendHeld
    | SendBehind
    | Activate
    | Deactivate
    | Replace
    | TakeBack
    | HoldRepair
    | RepairMember
    | SetRepairLimit
    | Verify
    | Snapshot
    | RepairTrace
)

# ---- effects


class SendFrame(NamedTuple):
    """The same buffers to each of the links, in the order of the effects."""

    links: tuple[int, ...]
    buffers: Sequence[Bytes]


@dataclass(frozen=True, slots=True)
class SendHeldAfter:
    """Writes are held: a SendHeld is to come after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class SendBehindAfter:
    """Frames are kept for the copy that is behind: a SendBehind is to come after so many
    seconds."""

    seconds: float


class CompleteGuest(NamedTuple):
    """Completions of requests submitted under `key`."""

    key: object
    completions: Sequence[Completion]


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a session; `region_id` empty where any region will do."""

    link: int
    slot: int
    address: str
    region_id: str
    generation: int


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Let the link go; the shell confirms with `Disconnected`."""

    link: int
    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of the request made under `key`: `error`, or else `value`."""

    key: object
    value: object = None
    error: StairwellError | None = None


@dataclass(frozen=True, slots=True)
class Changed:
    """The status is another one now."""


@dataclass(frozen=True, slots=True)
class RepairStarted:
    """A live repair of `slot` has begun; the shell may answer with `RepairTrace`."""

    slot: int
    address: str
    attempt: int


@dataclass(frozen=True, slots=True)
class RepairEnded:
    """`error` is empty when the slot is a full member again."""

    slot: int
    error: str
    extents: int
    bytes_copied: int


@dataclass(frozen=True, slots=True)
class SlotLeft:
    """A member left service; for the log."""

    slot: int
    address: str
    reason: str
    mode: str


@dataclass(frozen=True, slots=True)
class BlocksHealed:
    """Reads found blocks bad on a member, and they were written again from a good one; for the log.
    `blocks` counts since the last time it was told, `block` is one of them."""

    block: int
    blocks: int


Effect = (
    SendFrame
    | SendHeldAfter
    | SendBehindAfter
    | CompleteGuest
    | Connect
    | Disconnect
    | Answer
    | Changed
    | RepairStarted
    | RepairEnded
    | SlotLeft
    | BlocksHealed
)


class ReplaceResult(enum.IntEnum):
    """How a replacement was answered; the first three have the values of VcrReplaceResult."""

    STARTED = 1
    STARTED_ALREADY = 2
    COMPLETED_ALREADY = 3
    MISSING = 100


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """What all three members keep under a name: what the flush covered."""

    name: str
    generation: int
    flush_number: int


@dataclass(frozen=True, slots=True)
class Replacement:
    """`slot` is -1 when neither address belongs to this region set."""

    result: ReplaceResult
    slot: int


@dataclass(frozen=True, slots=True, eq=False)
class Digests:
    """One digest array (u64 per extent) per slot compared; slots that did not answer are absent."""

    by_slot: dict[int, npt.NDArray[np.uint64]]


def unanswered(batch: GuestBatch, effects: Sequence[Effect]) -> list[tuple[object, object]]:
    """(key, token) of the batch's requests that none of the effects completes."""
    done = {
        (id(effect.key), id(completion.token))
        for effect in effects
        if isinstance(effect, CompleteGuest)
        for completion in effect.completions
    }
    tokens = ((key, request.token) for key, requests in batch.submissions for request in requests)
    return [(key, token) for key, token in tokens if (id(key), id(token)) not in done]
