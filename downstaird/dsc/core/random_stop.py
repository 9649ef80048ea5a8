"""When the next member is killed at random, and which. Chance comes in as numbers from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stairlib.model.errors import FieldViolation, InvalidRequestError

SECONDS_MAX = 24 * 3600


@dataclass(frozen=True, slots=True)
class RandomStop:
    """Whether members are killed at random, and how many seconds apart."""

    enabled: bool = False
    min_seconds: int = 9
    max_seconds: int = 10

    def changed(
        self,
        *,
        enabled: bool | None = None,
        min_seconds: int | None = None,
        max_seconds: int | None = None,
    ) -> RandomStop:
        """The same with what is given changed; InvalidRequestError when that makes no sense."""
        new = RandomStop(
            self.enabled if enabled is None else enabled,
            self.min_seconds if min_seconds is None else min_seconds,
            self.max_seconds if max_seconds is None else max_seconds,
        )
        wrong = []
        if not 1 <= new.min_seconds <= SECONDS_MAX:
            wrong.append(("min_seconds", f"must be from 1 to {SECONDS_MAX} seconds"))
        if not new.min_seconds <= new.max_seconds <= SECONDS_MAX:
            rule = f"must be from min_seconds ({new.min_seconds}) to {SECONDS_MAX} seconds"
            wrong.append(("max_seconds", rule))
        if wrong:
            raise InvalidRequestError(
                "; ".join(f"{field} {rule}" for field, rule in wrong),
                tuple(FieldViolation(field, rule, "OUT_OF_RANGE") for field, rule in wrong),
            )
        return new

    def delay(self, chance: float) -> float:
        """Seconds until the next one."""
        return self.min_seconds + chance * (self.max_seconds - self.min_seconds)


def pick(cids: Sequence[int], chance: float) -> int | None:
    """One of `cids`, or None where there is none."""
    return cids[min(int(chance * len(cids)), len(cids) - 1)] if cids else None
