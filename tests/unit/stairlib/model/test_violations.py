"""Lists of problems: bounded, in order, and with nothing uncounted."""

import pytest

from stairlib.model.errors import FieldViolation
from stairlib.model.violations import VIOLATIONS_MAX, ViolationList, joined


def some(count: int) -> tuple[FieldViolation, ...]:
    return tuple(FieldViolation(f"f[{n}]", "must differ", "SAME") for n in range(count))


@pytest.mark.parametrize("count", [0, 1, VIOLATIONS_MAX - 1, VIOLATIONS_MAX, VIOLATIONS_MAX + 7])
def test_up_to_the_bound_all_are_listed_and_beyond_they_are_counted(count: int) -> None:
    found = ViolationList()
    for one in some(count):
        found.refuse(one.field, one.reason, one.description)
    assert found.count == count
    assert found.listed == some(count)[:VIOLATIONS_MAX]
    assert len(found.listed) + found.omitted == count
    assert found.full == (count >= VIOLATIONS_MAX)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 4), (VIOLATIONS_MAX, 5), (5, 2000)])
def test_two_lists_are_one_within_the_same_bound(first: int, second: int) -> None:
    listed, omitted = joined(some(first), some(second))
    assert len(listed) + omitted == first + second
    assert len(listed) <= VIOLATIONS_MAX
    assert listed[:first] == some(first)[: len(listed)]
