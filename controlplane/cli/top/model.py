"""What `top` knows: news of the control plane in, one consistent state out. Pure.

`Model.take` is given whatever arrives, in any order and any number of times; what it changes in the
eyes of a person becomes a line of the log. Nothing here asks, waits or knows the time but from the
news.

Invariants: the log tells each change once; memory is bounded by what there is now, SAMPLES_KEPT for
each disk and LOG_LINES.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from controlplane.cli.plain import enum_word
from controlplane.cli.render import instance_word, replacement_word
from controlplane.cli.watch import has_ended
from stairwell.controlplane.v1.disk_service_pb2 import Disk
from stairwell.controlplane.v1.fleet_service_pb2 import (
    Downstairs,
    DownstairsHealth,
    DownstairsRole,
    FaultedMember,
    FleetPolicy,
)
from stairwell.controlplane.v1.instance_service_pb2 import Instance
from stairwell.controlplane.v1.replacement_service_pb2 import Replacement, Transition
from stairwell.vmmd.v1.volume_service_pb2 import (
    SlotInfo,
    SlotMode,
    SlotState,
    VolumeSample,
    VolumeState,
)

# Two minutes of half-second samples.
SAMPLES_KEPT = 240
LOG_LINES = 500
# A rate is told over so much, so that it does not flicker.
RATE_SECONDS = 2.0
# An ended replacement stays in sight for so long.
ENDED_SHOWN_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything there is at a moment; `now` is seconds since the Unix epoch."""

    now: float
    instances: tuple[Instance, ...] = ()
    disks: tuple[Disk, ...] = ()
    downstairs: tuple[Downstairs, ...] = ()
    policy: FleetPolicy | None = None
    faulted: tuple[FaultedMember, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplacementNews:
    """A replacement as it is now, with the transitions that were not told yet."""

    now: float
    replacement: Replacement
    transitions: tuple[Transition, ...] = ()


@dataclass(frozen=True, slots=True)
class HistoryNews:
    """Further samples of a disk, oldest first."""

    disk: str
    samples: tuple[VolumeSample, ...]


@dataclass(frozen=True, slots=True)
class Away:
    """The control plane does not answer; told again and again while that lasts."""

    now: float
    message: str


@dataclass(frozen=True, slots=True)
class Said:
    """An answer to what the user asked for, or why it was refused."""

    now: float
    text: str


News = Inventory | ReplacementNews | HistoryNews | Away | Said


@dataclass(frozen=True, slots=True)
class LogLine:
    """Something that happened, and when (seconds since the Unix epoch)."""

    time: float
    text: str


@dataclass(frozen=True, slots=True)
class GuestRate:
    """How a guest fares now: requests and bytes a second, and the latency that 99 of 100 stay
    below, in milliseconds."""

    requests: float
    bytes: float
    p99: float


@dataclass(slots=True)
class Model:
    """See the module."""

    inventory: Inventory = field(default_factory=lambda: Inventory(0.0))
    replacements: dict[str, Replacement] = field(default_factory=dict)
    log: deque[LogLine] = field(default_factory=lambda: deque(maxlen=LOG_LINES))
    # Why the control plane does not answer; "" while it does.
    away: str = ""
    now: float = 0.0
    _samples: dict[str, deque[VolumeSample]] = field(default_factory=dict)
    _told: dict[str, int] = field(default_factory=dict)
    _words: dict[tuple[str, ...], str] = field(default_factory=dict)
    _known: bool = False

    def take(self, news: News) -> None:
        """Makes the news part of what is known."""
        if isinstance(news, HistoryNews):
            self._take_samples(news)
            return
        self.now = max(self.now, news.now)
        if isinstance(news, Inventory):
            self._take_inventory(news)
        elif isinstance(news, ReplacementNews):
            self._take_replacement(news)
        elif isinstance(news, Away):
            if not self.away:
                self._say(news.now, news.message)
            self.away = news.message
        else:
            self._say(news.now, news.text)

    def samples(self, disk: str) -> list[VolumeSample]:
        """The newest samples of a disk, oldest first."""
        return list(self._samples.get(disk, ()))

    def newest_sample(self, disk: str) -> VolumeSample | None:
        """After which to ask for more."""
        kept = self._samples.get(disk)
        return kept[-1] if kept else None

    def rate(self, disk: str) -> GuestRate | None:
        """How the disk's guest fares; None while nothing is known."""
        seconds = requests = moved = 0.0
        p99 = 0.0
        for sample in reversed(self._samples.get(disk, ())):
            seconds += sample.seconds
            requests += sample.completed
            moved += sample.read_bytes + sample.write_bytes
            p99 = max(p99, sample.p99_milliseconds)
            if seconds >= RATE_SECONDS:
                break
        if not seconds:
            return None
        return GuestRate(requests / seconds, moved / seconds, p99)

    def running(self) -> list[str]:
        """Ids of the replacements that disks say run now."""
        return [disk.replacement_id for disk in self.inventory.disks if disk.replacement_id]

    def shown_replacements(self) -> list[Replacement]:
        """Those that run, then those that have ended a short while ago; the newest first."""
        return sorted(
            self.replacements.values(),
            key=lambda one: (has_ended(one), -one.create_time.ToNanoseconds()),
        )

    def replacement_of(self, disk: str) -> Replacement | None:
        """The newest replacement of a disk that is in sight, one that runs before any other."""
        return next((one for one in self.shown_replacements() if one.disk == disk), None)

    # ----- news

    def _take_inventory(self, news: Inventory) -> None:
        if self.away:
            self._say(news.now, "the control plane answers again")
            self.away = ""
        self.inventory = news
        words = dict(_words(news))
        for key, word in words.items():
            before = self._words.get(key)
            if before == word:
                continue
            name = " ".join(filter(None, key[1:]))
            if before is not None:
                self._say(news.now, f"{name}: {before} -> {word}")
            elif self._known:
                self._say(news.now, f"{name}: {word}")
        for key in self._words.keys() - words.keys():
            # Slots go with their disk.
            if key[0] != "slot":
                self._say(news.now, f"{key[1]} is gone")
        self._words, self._known = words, True
        names = {disk.name for disk in news.disks}
        for name in self._samples.keys() - names:
            del self._samples[name]
        self._forget(news.now)

    def _take_replacement(self, news: ReplacementNews) -> None:
        one = news.replacement
        self.replacements[one.id] = one
        for step in news.transitions:
            if step.number <= self._told.get(one.id, -1):
                continue
            self._told[one.id] = step.number
            detail = f" ({step.detail})" if step.detail else ""
            who = f"{one.disk} slot {one.slot}"
            self._say(
                step.time.ToNanoseconds() / 1e9,
                f"{who}: replacement in {replacement_word(step.state)}{detail}",
            )
        self._forget(news.now)

    def _take_samples(self, news: HistoryNews) -> None:
        kept = self._samples.setdefault(news.disk, deque(maxlen=SAMPLES_KEPT))
        for sample in news.samples:
            if not kept or sample.end_time.ToNanoseconds() > kept[-1].end_time.ToNanoseconds():
                kept.append(sample)

    def _forget(self, now: float) -> None:
        for name, one in list(self.replacements.items()):
            ended = one.update_time.ToNanoseconds() / 1e9
            if has_ended(one) and now - ended > ENDED_SHOWN_SECONDS:
                del self.replacements[name]
                self._told.pop(name, None)

    def _say(self, time: float, text: str) -> None:
        self.log.append(LogLine(time, text))


def slot_word(slot: SlotInfo) -> str:
    """A slot's state, with its mode where that says why."""
    state = enum_word(SlotState.DESCRIPTOR, slot.state)
    if slot.mode in (SlotMode.SLOT_MODE_UNSPECIFIED, SlotMode.SLOT_MODE_NEW):
        return state
    if slot.state == SlotState.SLOT_STATE_ACTIVE:
        return state
    return f"{state}, {enum_word(SlotMode.DESCRIPTOR, slot.mode)}"


def volume_word(disk: Disk) -> str:
    """A volume's state; "no machine" while none answers for it."""
    if not disk.HasField("volume"):
        return "no machine"
    return enum_word(VolumeState.DESCRIPTOR, disk.volume.state)


def downstairs_word(one: Downstairs) -> str:
    """Its role and, if it was looked at, its health."""
    role = enum_word(DownstairsRole.DESCRIPTOR, one.role)
    if one.health == DownstairsHealth.DOWNSTAIRS_HEALTH_UNSPECIFIED:
        return role
    return f"{role}, {enum_word(DownstairsHealth.DESCRIPTOR, one.health)}"


def _words(news: Inventory) -> Iterator[tuple[tuple[str, ...], str]]:
    """What a person calls a change, by what it is a change of."""
    for instance in news.instances:
        reason = f" ({instance.reason})" if instance.reason else ""
        yield ("machine", instance.name), instance_word(instance.state) + reason
    for disk in news.disks:
        yield ("disk", disk.name), volume_word(disk)
        for region in disk.volume.regions:
            path = "" if len(disk.volume.regions) == 1 else region.path
            for slot in region.slots:
                yield ("slot", disk.name, path, f"slot {slot.slot}"), slot_word(slot)
    for one in news.downstairs:
        yield ("downstairs", one.address), downstairs_word(one)
