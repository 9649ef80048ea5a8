"""The rules of who may own a region, one case each."""

import uuid

import pytest

from downstaird.core.engine import Ownership, RegionDefinition
from downstaird.core.promotion import Proposal, check_compatible, check_key, promoted
from stairlib.model.errors import InvalidRequestError, StateError
from stairlib.model.geometry import Geometry

A, B = uuid.UUID(int=1), uuid.UUID(int=2)
S, T = uuid.UUID(int=11), uuid.UUID(int=12)
GEOMETRY = Geometry(4096, 64, 4)
DEFINITION = RegionDefinition(uuid.UUID(int=99), GEOMETRY, cipher="", format_version=1)


def proposal(upstairs=A, session=S, generation=5, **more):
    fields = {
        "read_only": False,
        "encrypted": False,
        "data_versions": (1,),
        "geometry": GEOMETRY,
        "region_id": None,
        **more,
    }
    return Proposal(upstairs, session, generation, **fields)


@pytest.mark.parametrize(
    ("current", "asked"),
    [
        (Ownership(None, None, 0), proposal(generation=1)),
        (Ownership(None, None, 0), proposal(generation=7)),
        (Ownership(A, S, 5), proposal(generation=6)),
        (Ownership(A, S, 5), proposal(session=T, generation=6)),
        (Ownership(A, S, 5), proposal(generation=5)),
    ],
)
def test_accepted(current, asked):
    assert promoted(asked, current, blank=current.owner_id is None) == Ownership(
        asked.upstairs_id, asked.session_id, asked.generation
    )


@pytest.mark.parametrize(
    ("current", "asked", "reason"),
    [
        (Ownership(A, S, 5), proposal(generation=4), "GENERATION_TOO_LOW"),
        (Ownership(A, S, 5), proposal(session=T, generation=5), "GENERATION_TOO_LOW"),
        (Ownership(A, S, 5), proposal(B, generation=4), "REGION_IN_USE"),
        (Ownership(A, S, 5), proposal(B, generation=5), "REGION_IN_USE"),
        (Ownership(A, S, 5), proposal(B, generation=9), "REGION_IN_USE"),
    ],
)
def test_refused(current, asked, reason):
    with pytest.raises(StateError) as caught:
        promoted(asked, current, blank=False)
    assert caught.value.reason == reason
    if reason == "GENERATION_TOO_LOW":
        assert caught.value.metadata == {"requested": str(asked.generation), "promoted": "5"}
    else:
        assert str(A) in caught.value.message
        assert str(B) in caught.value.message


def test_generation_zero_is_never_promoted():
    with pytest.raises(InvalidRequestError) as caught:
        promoted(proposal(generation=0), Ownership(None, None, 0), blank=True)
    assert caught.value.violations[0].field == "generation"


@pytest.mark.parametrize(
    ("changes", "reason", "requested", "actual"),
    [
        ({"data_versions": (7, 8)}, "VERSION_MISMATCH", "7, 8", "1"),
        ({"data_versions": ()}, "VERSION_MISMATCH", "none", "1"),
        ({"region_id": B}, "REGION_MISMATCH", str(B), str(DEFINITION.id)),
        (
            {"geometry": Geometry(512, 64, 4)},
            "GEOMETRY_MISMATCH",
            "512-byte blocks, 64 blocks an extent, 4 extents",
            GEOMETRY.describe(),
        ),
        ({"encrypted": True}, "ENCRYPTION_MISMATCH", "encrypted", "not encrypted"),
        ({"read_only": True}, "READ_ONLY_MISMATCH", "read-only", "not read-only"),
    ],
)
def test_a_difference_is_refused_with_both_values(changes, reason, requested, actual):
    with pytest.raises(StateError) as caught:
        check_compatible(proposal(**changes), DEFINITION, read_only=False, versions=(1,))
    assert caught.value.reason == reason
    assert caught.value.metadata == {"requested": requested, "actual": actual}
    assert requested in caught.value.message
    assert actual in caught.value.message


def test_the_callers_best_version_that_is_spoken_here_is_chosen():
    asked = proposal(data_versions=(9, 2, 1))
    assert check_compatible(asked, DEFINITION, read_only=False, versions=(1, 2)) == 2


def test_what_is_not_said_is_not_compared():
    asked = proposal(geometry=None, region_id=None)
    assert check_compatible(asked, DEFINITION, read_only=False, versions=(1,)) == 1


def test_a_first_owner_gets_a_blank_region_only():
    """Stamps of another life would win over those of the volume's own members."""
    with pytest.raises(StateError) as caught:
        promoted(proposal(generation=9), Ownership(None, None, 0), blank=False)
    assert caught.value.reason == "REGION_NOT_BLANK"
    assert "create it anew" in caught.value.message


KEY, OTHER = bytes(range(16)), bytes(range(1, 17))


@pytest.mark.parametrize(
    ("current", "asked"),
    [
        (Ownership(None, None, 0), proposal(generation=1, key_check=KEY)),
        (Ownership(A, S, 5, KEY), proposal(session=T, generation=6, key_check=KEY)),
        (Ownership(A, S, 5, KEY), proposal(generation=5, key_check=KEY)),
        # From before checks were recorded: at the next promotion, or when the session comes again.
        (Ownership(A, S, 5), proposal(session=T, generation=6, key_check=KEY)),
        (Ownership(A, S, 5), proposal(generation=5, key_check=KEY)),
    ],
)
def test_the_first_check_is_recorded_and_the_same_is_accepted(current, asked):
    wanted = promoted(asked, current, blank=current.owner_id is None)
    assert wanted == Ownership(A, asked.session_id, asked.generation, KEY)


@pytest.mark.parametrize("given", [OTHER, b""])
@pytest.mark.parametrize("generation", [5, 6])
def test_another_key_is_refused_whatever_its_generation(given, generation):
    current = Ownership(A, S, 5, KEY)
    asked = proposal(generation=generation, key_check=given)
    for refuse in (
        lambda: promoted(asked, current, blank=False),
        lambda: check_key(asked, current),
    ):
        with pytest.raises(StateError) as caught:
            refuse()
        assert caught.value.reason == "KEY_MISMATCH"
        assert caught.value.metadata == {"owner_id": str(A)}
        says = "give that key" if given else "run the same release"
        assert says in caught.value.message
        for value in (KEY, OTHER):
            assert value.hex() not in caught.value.message
            assert repr(value) not in caught.value.message


def test_a_stranger_and_a_latecomer_learn_nothing_of_the_key():
    current = Ownership(A, S, 5, KEY)
    for asked, reason in (
        (proposal(B, generation=9, key_check=OTHER), "REGION_IN_USE"),
        (proposal(session=T, generation=5, key_check=KEY), "GENERATION_TOO_LOW"),
    ):
        with pytest.raises(StateError) as caught:
            promoted(asked, current, blank=False)
        assert caught.value.reason == reason


def test_a_reader_of_a_region_without_a_check_is_not_asked_for_one():
    check_key(proposal(key_check=KEY), Ownership(A, S, 5))
    assert "key_check" not in repr(proposal(key_check=KEY))
