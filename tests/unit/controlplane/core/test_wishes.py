"""What was refused where a record is driven is refused where it was asked, in the same way."""

from __future__ import annotations

import pytest

from controlplane.core.leases import Kind, LeaseLostError
from controlplane.core.wishes import failure_of, good, read_answer
from stairlib.model.errors import (
    ConflictError,
    FieldViolation,
    InvalidRequestError,
    NotFoundError,
    StairwellError,
    StateError,
)

ERRORS = [
    StateError("not now", reason="REPLACEMENT_ENDED", replacement="r"),
    InvalidRequestError("wrong", (FieldViolation("a.b", "is wrong", "BAD"),), reason="BAD"),
    NotFoundError("disk", "d"),
    StairwellError("internal"),
]


def test_good_raises_nothing() -> None:
    read_answer(good())


@pytest.mark.parametrize("error", ERRORS, ids=lambda each: type(each).__name__)
def test_the_same_error_comes_out(error: StairwellError) -> None:
    with pytest.raises(type(error)) as caught:
        read_answer(failure_of(error))
    found = caught.value
    assert (found.message, found.reason) == (error.message, error.reason)
    assert found.metadata == error.metadata
    assert getattr(found, "violations", None) == getattr(error, "violations", None)


def test_an_error_of_a_narrower_kind_comes_out_as_the_one_it_is_of() -> None:
    with pytest.raises(ConflictError) as caught:
        read_answer(failure_of(LeaseLostError(Kind.SCRUB, "k")))
    assert caught.value.reason == "LEASE_LOST"
