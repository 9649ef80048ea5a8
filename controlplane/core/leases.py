"""Leases: which control plane drives what, and until when it may believe so.

Several control planes may share one store. What one task drives (the machine of an instance, a
replacement, a scrub, a duty such as the care of the fleet) is leased by its row there: to an owner,
with an epoch that rises each time the lease goes to somebody, until a time of the database's clock.
The book here is what one control plane believes of its own leases. `until` is on its own steady
clock, counted from before the database was asked, so that belief always ends before the lease does.
Invariants:

- a lease that was not renewed in time is given up, whatever the database would say by then;
- an epoch that was given up is never held again: who drove under it has to stop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from math import inf

from stairlib.model.errors import ConflictError

# A lease is renewed this often within its time: three renewals may fail before it ends.
RENEWALS = 4
# Of a lease's time, what is left unused: the step from the last check to the effect, and the drift
# of two clocks against each other.
MARGIN = 0.1
LEASE_SECONDS = 10.0
LEASE_SECONDS_MIN = 1.0
LEASE_SECONDS_MAX = 3600.0


class Kind(StrEnum):
    """What can be leased."""

    INSTANCE = "instance"
    REPLACEMENT = "replacement"
    SCRUB = "scrub"
    DUTY = "duty"


Key = tuple[Kind, str]


@dataclass(frozen=True, slots=True)
class Lease:
    """One lease. `until` is a time of the host's steady clock; infinite where nobody shares."""

    kind: Kind
    key: str
    epoch: int
    until: float = inf


class LeaseLostError(ConflictError):
    """Another control plane may drive it by now, or drives it."""

    reason = "LEASE_LOST"

    def __init__(self, kind: Kind, key: str) -> None:
        super().__init__(
            f"this control plane's lease of {kind} {key} has ended; another one goes on with it",
            kind=kind,
            key=key,
        )


def believed_until(asked_at: float, seconds: float | None) -> float:
    """Until when a lease that was asked for at `asked_at` is believed; None is for ever."""
    return inf if seconds is None else asked_at + seconds * (1 - MARGIN)


class LeaseBook:
    """The leases one control plane holds. Times are of its steady clock, in seconds."""

    def __init__(self) -> None:
        self._held: dict[Key, Lease] = {}

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, lease: Lease) -> None:
        """Takes a lease that was granted; an older epoch changes nothing."""
        known = self._held.get((lease.kind, lease.key))
        if known is None or known.epoch <= lease.epoch:
            self._held[(lease.kind, lease.key)] = lease

    def let_go(self, kind: Kind, key: str, epoch: int) -> Lease | None:
        """Forgets a lease; the lease, if this epoch was held."""
        known = self._held.get((kind, key))
        if known is None or known.epoch != epoch:
            return None
        return self._held.pop((kind, key))

    def epoch(self, kind: Kind, key: str, now: float) -> int | None:
        """The epoch that is held now; None when none is."""
        known = self._held.get((kind, key))
        return known.epoch if known is not None and now < known.until else None

    def require(self, kind: Kind, key: str, epoch: int, now: float) -> None:
        """LeaseLostError unless this epoch is held now."""
        if self.epoch(kind, key, now) != epoch:
            raise LeaseLostError(kind, key)

    def held(self) -> tuple[Lease, ...]:
        """All of them."""
        return tuple(self._held.values())

    def renewed(self, asked: Iterable[Lease], granted: Iterable[Lease]) -> list[Lease]:
        """Takes over what a renewal of `asked` granted; those it did not are lost and returned.

        What was taken after the renewal was sent is not in `asked`, and stays.
        """
        fresh = {(each.kind, each.key): each for each in granted}
        lost = []
        for lease in asked:
            given = fresh.get((lease.kind, lease.key))
            if given is not None and given.epoch == lease.epoch:
                if self._held.get((lease.kind, lease.key)) is not None:
                    self.hold(given)
            elif self.let_go(lease.kind, lease.key, lease.epoch) is not None:
                lost.append(lease)
        return lost

    def expired(self, now: float) -> list[Lease]:
        """Those whose time has passed; they are given up."""
        late = [each for each in self._held.values() if now >= each.until]
        for lease in late:
            del self._held[(lease.kind, lease.key)]
        return late

    def next_expiry(self) -> float:
        """When the first one ends by itself; infinite when none does."""
        return min((each.until for each in self._held.values()), default=inf)
