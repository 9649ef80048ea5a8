"""What another daemon says of its owner's key."""

import pytest

from downstaird.services.mapping import ownership_of
from stairlib.model.errors import InvalidRequestError
from stairwell.downstairs.v1 import region_service_pb2 as region_pb

CHECK = bytes(range(16))


def region(**changes):
    return region_pb.Region(promoted_generation=3, **changes)


@pytest.mark.parametrize(
    ("message", "check"),
    [
        (region(encrypted=True, key_check=CHECK), CHECK),
        (region(encrypted=True), b""),
        # A plain region has no place for one.
        (region(key_check=CHECK), b""),
    ],
)
def test_it_is_taken_over_for_encrypted_regions(message, check):
    found = ownership_of(message)
    assert (found.generation, found.key_check) == (3, check)


@pytest.mark.parametrize("value", [b"abc", b"abc" * 40, bytes(16)])
def test_what_cannot_be_one_is_refused_and_not_shown(value):
    with pytest.raises(InvalidRequestError, match="the source's key_check must be 16") as refused:
        ownership_of(region(encrypted=True, key_check=value))
    assert "abc" not in refused.value.message
