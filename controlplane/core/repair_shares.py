"""Who may copy how fast: what is wanted of a volume's repairs, and the fleet's rate divided among
those that run. Pure.

`shares` gives each repair a part of the rate by what it has left to copy, half of it by number:
large ones do not starve small ones, nor the reverse. What a repair cannot use, because its own
limit is lower, is divided among the others. It is computed anew whenever repairs come and go;
nothing of it is stored.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from stairlib.model.errors import FieldViolation, InvalidRequestError

K = TypeVar("K", bound=Hashable)

# What the store and the wire agree on; far above any network.
RATE_MAX = (1 << 63) - 1
# As at the machine: each extent in flight takes memory at the member that is filled.
EXTENTS_IN_FLIGHT_MAX = 16


@dataclass(frozen=True, slots=True)
class RepairWish:
    """What is wanted of a volume's repairs; rates in bytes per second. Zero, and `adaptive` None,
    leave it to the machine: no limit, its own floor and number of extents, adaptive."""

    bytes_per_second_max: int = 0
    bytes_per_second_min: int = 0
    extents_in_flight_max: int = 0
    adaptive: bool | None = None


@dataclass(frozen=True, slots=True)
class WishChange:
    """What a user wants changed; None stays as it is."""

    bytes_per_second_max: int | None = None
    bytes_per_second_min: int | None = None
    extents_in_flight_max: int | None = None
    adaptive: bool | None = None


def changed(wish: RepairWish, change: WishChange) -> RepairWish:
    """The wish after the change; InvalidRequestError with all that is wrong with it."""
    fields = {
        name: getattr(change, name)
        for name in WishChange.__slots__
        if getattr(change, name) is not None
    }
    found = replace(wish, **fields)
    violations = []
    for name in ("bytes_per_second_max", "bytes_per_second_min"):
        if getattr(found, name) > RATE_MAX:
            text = f"is above {RATE_MAX}; use 0 for no limit"
            violations.append(FieldViolation(name, text, "TOO_LARGE"))
    if found.extents_in_flight_max > EXTENTS_IN_FLIGHT_MAX:
        text = f"is above {EXTENTS_IN_FLIGHT_MAX}; use 0 for the default"
        violations.append(FieldViolation("extents_in_flight_max", text, "TOO_LARGE"))
    if 0 < found.bytes_per_second_max < found.bytes_per_second_min:
        text = (
            f"is {found.bytes_per_second_min}, above the limit of {found.bytes_per_second_max}; "
            "lower it or raise bytes_per_second_max"
        )
        violations.append(FieldViolation("bytes_per_second_min", text, "ABOVE_LIMIT"))
    if violations:
        listed = "; ".join(f"{each.field} {each.description}" for each in violations)
        raise InvalidRequestError(listed, tuple(violations), reason=violations[0].reason)
    return found


@dataclass(frozen=True, slots=True)
class Need(Generic[K]):
    """One repair: bytes it has left to look at, and the most it can use; 0 is no bound."""

    key: K
    bytes_left: int
    bytes_per_second_max: int = 0


def shares(rate: int, needs: Iterable[Need[K]]) -> dict[K, int]:
    """Bytes per second for each repair, at least 1 and at least half an equal part of `rate`, if it
    can use that; together at most `rate`, as long as there are not more repairs than bytes. All of
    it is given out, unless nobody can use it."""
    left = list(needs)
    if not left:
        return {}
    even = rate / (2 * len(left))
    base = {each.key: min(even, each.bytes_per_second_max or even) for each in left}
    found: dict[K, int] = {}
    rest = rate - sum(base.values())
    while left:
        weights = _weights(left)
        # Whoever cannot use its part is given what it can, and the others' parts grow: only who is
        # below its part now is below the one it would have in the end.
        sated = [
            each
            for each, weight in zip(left, weights, strict=True)
            if 0 < each.bytes_per_second_max <= base[each.key] + rest * weight
        ]
        if not sated:
            for each, weight in zip(left, weights, strict=True):
                found[each.key] = max(1, int(base[each.key] + rest * weight))
            return found
        for each in sated:
            found[each.key] = max(1, each.bytes_per_second_max)
            rest -= each.bytes_per_second_max - base[each.key]
        left = [each for each in left if each.key not in found]
    return found


def _weights(needs: list[Need[K]]) -> list[float]:
    """Parts of one, by what is left to copy."""
    total = sum(each.bytes_left for each in needs)
    if not total:
        return [1 / len(needs)] * len(needs)
    return [each.bytes_left / total for each in needs]
