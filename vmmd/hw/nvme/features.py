"""Set Features and Get Features.

Nothing is saved over a reset. A value that a guest may set to what it likes is kept and read back;
the ones that mean something are checked. Source: NVM Express 1.4, section 5.21.1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vmmd.hw.nvme import bits, logs
from vmmd.hw.nvme.bits import Feature, FeatureSelect
from vmmd.hw.nvme.commands import CommandError, Entry

# Besides the admin queue.
IO_QUEUES_MAX = 15
_QUEUES = (IO_QUEUES_MAX - 1) << 16 | (IO_QUEUES_MAX - 1)
_SAVE = 1 << 31
_NAMESPACE_SPECIFIC = 1 << 1
_CHANGEABLE = 1 << 2

_DEFAULTS = {
    # No limit to a burst.
    Feature.ARBITRATION: 7,
    Feature.POWER_MANAGEMENT: 0,
    Feature.ERROR_RECOVERY: 0,
    Feature.VOLATILE_WRITE_CACHE: 1,
    Feature.NUMBER_OF_QUEUES: _QUEUES,
    Feature.INTERRUPT_COALESCING: 0,
    Feature.WRITE_ATOMICITY: 0,
    Feature.ASYNC_EVENT_CONFIGURATION: 0,
}
# Bits that a guest may set; others are refused.
_ALLOWED = {
    # Power state 0 is the only one.
    Feature.POWER_MANAGEMENT: 0xE0,
    # Reads of deallocated blocks are never errors.
    Feature.ERROR_RECOVERY: 0xFFFF,
    Feature.VOLATILE_WRITE_CACHE: 1,
    Feature.WRITE_ATOMICITY: 1,
}
_OVER, _UNDER = 0, 1
_COMPOSITE, _ALL_SENSORS = 0, 0xF
_THRESHOLDS = {_OVER: logs.WARNING_KELVIN, _UNDER: 0}
# Interrupts are never coalesced.
_NOT_COALESCED = 1 << 16


@dataclass(slots=True)
class Features:
    """The values set since the controller was enabled. `vectors`: interrupts there are."""

    vectors: int
    values: dict[int, int] = field(default_factory=dict)
    thresholds: dict[int, int] = field(default_factory=dict)
    # Whether writes may stay in the write cache: the feature's value, looked at for each command.
    write_cache: bool = True

    @property
    def warning(self) -> int:
        """Bits of the critical warning, by the thresholds."""
        over = self.thresholds.get(_OVER, _THRESHOLDS[_OVER])
        under = self.thresholds.get(_UNDER, _THRESHOLDS[_UNDER])
        usual = under < logs.TEMPERATURE_KELVIN < over
        return 0 if usual else bits.WARNING_TEMPERATURE

    @property
    def told_warnings(self) -> int:
        """Which bits of it are told by events."""
        return self._current(Feature.ASYNC_EVENT_CONFIGURATION) & 0xFF

    def _current(self, feature: Feature) -> int:
        return self.values.get(feature, _DEFAULTS[feature])

    def set(self, entry: Entry, *, queues_made: bool) -> int:
        """Result dword; CommandError. `queues_made`: I/O queues are there already."""
        if entry.cdw10 & _SAVE:
            raise CommandError(bits.FEATURE_NOT_SAVEABLE)
        feature = _known(entry)
        if entry.namespace == bits.NAMESPACE and feature is not Feature.ERROR_RECOVERY:
            raise CommandError(bits.FEATURE_NOT_NAMESPACE_SPECIFIC)
        value = entry.cdw11
        if feature is Feature.NUMBER_OF_QUEUES:
            return _set_number_of_queues(value, queues_made=queues_made)
        if feature is Feature.TEMPERATURE_THRESHOLD:
            sensor, kind = value >> 16 & 0xF, value >> 20 & 0x3
            if kind not in _THRESHOLDS or sensor not in (_COMPOSITE, _ALL_SENSORS):
                raise CommandError(bits.INVALID_FIELD)
            self.thresholds[kind] = value & 0xFFFF
        elif feature is Feature.INTERRUPT_VECTOR:
            self._check_vector(value)
        elif value & ~_ALLOWED.get(feature, 0xFFFFFFFF):
            raise CommandError(bits.INVALID_FIELD)
        else:
            self.values[feature] = value
            if feature is Feature.VOLATILE_WRITE_CACHE:
                self.write_cache = bool(value)
        return 0

    def get(self, entry: Entry) -> int:
        """Result dword; CommandError."""
        feature = _known(entry)
        select = entry.cdw10 >> 8 & 0x7
        if select > FeatureSelect.CAPABILITIES:
            raise CommandError(bits.INVALID_FIELD)
        if select == FeatureSelect.CAPABILITIES:
            own = feature is Feature.ERROR_RECOVERY
            return _CHANGEABLE | (_NAMESPACE_SPECIFIC if own else 0)
        # What is not saved is, as saved, its default.
        default = select != FeatureSelect.CURRENT
        if feature is Feature.INTERRUPT_VECTOR:
            return self._check_vector(entry.cdw11) | _NOT_COALESCED
        if feature is Feature.TEMPERATURE_THRESHOLD:
            sensor, kind = entry.cdw11 >> 16 & 0xF, entry.cdw11 >> 20 & 0x3
            if kind not in _THRESHOLDS or sensor != _COMPOSITE:
                raise CommandError(bits.INVALID_FIELD)
            return _THRESHOLDS[kind] if default else self.thresholds.get(kind, _THRESHOLDS[kind])
        return _DEFAULTS[feature] if default else self._current(feature)

    def _check_vector(self, value: int) -> int:
        vector = value & 0xFFFF
        if vector >= self.vectors:
            raise CommandError(bits.INVALID_FIELD)
        return vector


def _known(entry: Entry) -> Feature:
    """The feature a command is about; it is there, and so is the namespace."""
    try:
        feature = Feature(entry.cdw10 & 0xFF)
    except ValueError:
        raise CommandError(bits.INVALID_FIELD) from None
    if entry.namespace not in (0, bits.NAMESPACE, bits.NAMESPACE_ALL):
        raise CommandError(bits.INVALID_NAMESPACE)
    return feature


def _set_number_of_queues(value: int, *, queues_made: bool) -> int:
    wanted_cq, wanted_sq = value >> 16, value & 0xFFFF
    if 0xFFFF in (wanted_cq, wanted_sq):
        raise CommandError(bits.INVALID_FIELD)
    if queues_made:
        raise CommandError(bits.COMMAND_SEQUENCE_ERROR)
    most = IO_QUEUES_MAX - 1
    return min(wanted_cq, most) << 16 | min(wanted_sq, most)
