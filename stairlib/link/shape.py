"""How a link carries bytes in one direction: late, slowly, in fits, or not at all.

What is imitated is what TCP makes of such a network. Bytes come in order and all of them, or the
connection ends: a packet that is lost shows as a time in which nothing more arrives. All
connections of a link share its wire.

Nothing here waits or looks at a clock.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Self

from stairlib.model.errors import InvalidRequestError

# What is read at once at most, and how long it may occupy a slow wire: connections take turns.
PIECE_BYTES: Final = 64 << 10
PIECE_SECONDS: Final = 0.02
# What waits before a slow wire, as in a router: beyond it nothing more is read.
QUEUE_SECONDS: Final = 0.1
# Of Ethernet, with TCP's usual options.
SEGMENT_BYTES: Final = 1448
# The least time after which Linux sends again what was not acknowledged; losses within a stream of
# packets are noticed sooner, which is not imitated.
RETRANSMIT_SECONDS: Final = 0.2

_NUMBER: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z%/]*)", re.IGNORECASE)
_SECONDS: Final[Mapping[str, float]] = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}
_BYTES: Final[Mapping[str, float]] = {
    "": 1, "b": 1, "k": 1 << 10, "kib": 1 << 10, "m": 1 << 20, "mib": 1 << 20, "g": 1 << 30,
    "gib": 1 << 30, "bit": 1 / 8, "kbit": 1e3 / 8, "mbit": 1e6 / 8, "gbit": 1e9 / 8,
}  # fmt: skip
_SHARES: Final[Mapping[str, float]] = {"": 1.0, "%": 0.01}
DELAY_SECONDS_MAX: Final = 60.0


@dataclass(frozen=True, slots=True)
class Shape:
    """One direction. Nothing is in the way when all is 0.

    `delay`: seconds that each byte is later; `jitter`: up to so many more, by chance; `rate`: bytes
    per second, 0 for no bound; `loss`: the share of packets lost, 0 to 1; `stalled`: nothing
    arrives, and nobody is told.
    """

    delay: float = 0.0
    jitter: float = 0.0
    rate: float = 0.0
    loss: float = 0.0
    stalled: bool = False

    def __post_init__(self) -> None:
        """InvalidRequestError when a value makes no sense."""
        for name, highest in (
            ("delay", DELAY_SECONDS_MAX), ("jitter", DELAY_SECONDS_MAX), ("rate", math.inf),
            ("loss", 1.0),
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value <= highest:
                raise InvalidRequestError(f"{name} must be from 0 to {highest:g}, not {value!r}")
        if self.rate and self.rate < 1:
            raise InvalidRequestError("rate must be 0, for no bound, or at least one byte a second")

    @classmethod
    def from_json(cls, values: Mapping[str, Any], before: Shape | None = None) -> Self:
        """What `before` becomes with these values. InvalidRequestError when there is another."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise InvalidRequestError(f"a link has no {', '.join(unknown)}")
        return cls(**{**asdict(before or cls()), **values})

    def to_json(self) -> dict[str, Any]:
        """Its values by name."""
        return asdict(self)


class Wire:
    """One direction of a link: when what is sent now arrives. Times are seconds of one clock."""

    __slots__ = ("_chance", "_free_at", "shape")

    def __init__(self, shape: Shape, chance: random.Random) -> None:
        self.shape = shape
        self._chance = chance
        self._free_at = 0.0

    @property
    def piece_bytes(self) -> int:
        """How much may be sent at once."""
        rate = self.shape.rate
        return min(PIECE_BYTES, max(1, int(rate * PIECE_SECONDS))) if rate else PIECE_BYTES

    def wait(self, now: float) -> float:
        """Seconds until more may be sent; 0 for now."""
        return max(0.0, self._free_at - now - QUEUE_SECONDS) if self.shape.rate else 0.0

    def send(self, size: int, now: float) -> float:
        """When the last of `size` bytes arrives, if nothing before them is later."""
        shape = self.shape
        sent = now
        if shape.rate:
            sent = self._free_at = max(self._free_at, now) + size / shape.rate
        late = shape.delay + self._chance.uniform(0, shape.jitter)
        if shape.loss and size:
            packets = math.ceil(size / SEGMENT_BYTES)
            if self._chance.random() < 1 - (1 - shape.loss) ** packets:
                late += max(RETRANSMIT_SECONDS, 2 * shape.delay)
        return sent + late


def seconds(text: str) -> float:
    """From "20ms", "0.5s" or "2". InvalidRequestError says what would be right."""
    return _read(text, _SECONDS, "a time", "20ms or 1.5s")


def bytes_per_second(text: str) -> float:
    """From "4MiB", "512K" (both binary), "8mbit" or "1000000"; "0" for no bound.
    InvalidRequestError says what would be right."""
    return _read(text, _BYTES, "a rate", "4MiB or 8mbit")


def share(text: str) -> float:
    """From "2%" or "0.02". InvalidRequestError says what would be right."""
    return _read(text, _SHARES, "a share", "2% or 0.02")


def _read(text: str, units: Mapping[str, float], what: str, example: str) -> float:
    match = _NUMBER.fullmatch(text.strip())
    unit = match[2].lower().removesuffix("/s") if match else ""
    if match is None or unit not in units:
        raise InvalidRequestError(f"{text!r} is not {what}; write for example {example}")
    return float(match[1]) * units[unit]
