"""Set and Get Features: values, defaults, what can be set, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from vmmd.hw.nvme import bits
from vmmd.hw.nvme.bits import AdminOpcode, Feature, FeatureSelect

NAMESPACE_SPECIFIC = bits.FEATURE_NOT_NAMESPACE_SPECIFIC


@pytest.fixture
def bare(make_rig: Any) -> Any:
    made = make_rig()
    made.enable()
    return made


def set_feature(rig: Any, feature: int, value: int, **fields: int) -> tuple[int, int]:
    answer = rig.admin(AdminOpcode.SET_FEATURES, cdw10=feature, cdw11=value, **fields)
    return (int(answer[0]), int(answer[1]))


def get_feature(rig: Any, feature: int, select: int = 0, cdw11: int = 0) -> tuple[int, int]:
    cdw10 = feature | select << 8
    answer = rig.admin(AdminOpcode.GET_FEATURES, cdw10=cdw10, cdw11=cdw11)
    return (int(answer[0]), int(answer[1]))


@pytest.mark.parametrize("feature", Feature)
def test_every_feature_has_values_and_capabilities(bare: Any, feature: Feature) -> None:
    current = get_feature(bare, feature)
    assert current[0] == 0
    for select in (FeatureSelect.DEFAULT, FeatureSelect.SAVED):
        assert get_feature(bare, feature, select) == current
    capable = 0b110 if feature is Feature.ERROR_RECOVERY else 0b100
    assert get_feature(bare, feature, FeatureSelect.CAPABILITIES) == (0, capable)


def test_a_value_that_was_set_is_current_and_the_default_stays(bare: Any) -> None:
    assert set_feature(bare, Feature.VOLATILE_WRITE_CACHE, 0) == (0, 0)
    assert get_feature(bare, Feature.VOLATILE_WRITE_CACHE) == (0, 0)
    assert get_feature(bare, Feature.VOLATILE_WRITE_CACHE, FeatureSelect.DEFAULT) == (0, 1)
    # Nothing is saved over a reset.
    bare.core.register_write(bits.REG_CC, 4, 0)
    bare.tails[0] = bare.heads[0] = 0
    bare.phases[0] = 1
    bare.ram.bytes[0x1000:0x3000] = bytes(0x2000)
    bare.enable()
    assert get_feature(bare, Feature.VOLATILE_WRITE_CACHE) == (0, 1)


def test_thresholds_of_temperature(bare: Any) -> None:
    feature, under = Feature.TEMPERATURE_THRESHOLD, 1 << 20
    assert get_feature(bare, feature) == (0, 350)
    assert get_feature(bare, feature, cdw11=under) == (0, 0)
    assert set_feature(bare, feature, 333) == (0, 0)
    assert set_feature(bare, feature, under | 0xF << 16 | 280) == (0, 0)
    assert get_feature(bare, feature) == (0, 333)
    assert get_feature(bare, feature, cdw11=under) == (0, 280)
    assert get_feature(bare, feature, FeatureSelect.DEFAULT) == (0, 350)


def test_an_interrupt_vector_is_never_coalesced(bare: Any) -> None:
    assert set_feature(bare, Feature.INTERRUPT_VECTOR, 3) == (0, 0)
    assert get_feature(bare, Feature.INTERRUPT_VECTOR, cdw11=3) == (0, 3 | 1 << 16)


@pytest.mark.parametrize(
    ("feature", "value", "fields", "status"),
    [
        (Feature.POWER_MANAGEMENT, 1, {}, bits.INVALID_FIELD),
        (Feature.ERROR_RECOVERY, 1 << 16, {}, bits.INVALID_FIELD),
        (Feature.VOLATILE_WRITE_CACHE, 2, {}, bits.INVALID_FIELD),
        (Feature.TEMPERATURE_THRESHOLD, 2 << 20, {}, bits.INVALID_FIELD),
        (Feature.TEMPERATURE_THRESHOLD, 1 << 16, {}, bits.INVALID_FIELD),
        (Feature.INTERRUPT_VECTOR, 16, {}, bits.INVALID_FIELD),
        (Feature.NUMBER_OF_QUEUES, 0xFFFF << 16, {}, bits.INVALID_FIELD),
        (Feature.ARBITRATION, 0, {"namespace": 2}, bits.INVALID_NAMESPACE),
        (Feature.ARBITRATION, 0, {"namespace": 1}, NAMESPACE_SPECIFIC),
        (Feature.ERROR_RECOVERY, 7, {"namespace": 1}, bits.OK),
        (0x0C, 0, {}, bits.INVALID_FIELD),
        (0x0D, 0, {}, bits.INVALID_FIELD),
        (0x0E, 0, {}, bits.INVALID_FIELD),
        (0x00, 0, {}, bits.INVALID_FIELD),
    ],
)
def test_bad_values(
    bare: Any, feature: int, value: int, fields: dict[str, int], status: int
) -> None:
    assert set_feature(bare, feature, value, **fields) == (status, 0)


@pytest.mark.parametrize(
    ("feature", "select", "cdw11"),
    [
        (Feature.ARBITRATION, 4, 0),
        (Feature.INTERRUPT_VECTOR, 0, 16),
        (Feature.TEMPERATURE_THRESHOLD, 0, 2 << 20),
        (Feature.TEMPERATURE_THRESHOLD, 0, 1 << 16),
        (0x80, 0, 0),
    ],
)
def test_bad_questions(bare: Any, feature: int, select: int, cdw11: int) -> None:
    assert get_feature(bare, feature, select, cdw11) == (bits.INVALID_FIELD, 0)
