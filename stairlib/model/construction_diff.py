"""What a replacement construction changes against the original: one target, or generations only.

Both trees are walked together by position. A field that may not change, a lowered generation and
a second changed target are violations wherever they are; all are listed, and any makes the outcome
REJECT. The trees as a whole are judged as well:

    one target changed           REPLACE, unless a volume stands among the top volume's sub-volumes
    no target changed            GENERATION_ONLY when the first sub-volume has a part in the rise
    nothing changed              UNCHANGED; a dropped read-only parent is no change

Facts that surprise, kept from the original system on purpose:

- a generation may rise with a target change but need not; it must not fall, anywhere;
- a file or URL cannot be compared, so a pair of them is refused even where they are equal;
- the replacement may drop a read-only parent, whatever it was, and may never add one;
- without a target change, a rise in a later sub-volume or in the parent alone is refused.

Descriptions read on from the field's path and never carry a key or what stands in a TLS field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from uuid import UUID

from stairlib.model.construction import (
    PARENT,
    TARGETS_PER_REGION,
    Construction,
    RegionOptions,
    RegionSpec,
    VolumeSpec,
    join_path,
    type_name,
)
from stairlib.model.errors import FieldViolation
from stairlib.model.violations import ViolationList


class Outcome(Enum):
    """What a replacement is, seen from the original."""

    REPLACE = "replace"
    GENERATION_ONLY = "generation_only"
    UNCHANGED = "unchanged"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class ChangedTarget:
    """The one target that changed. `path` leads to it, `region_path` to the region it is of, whose
    generation is `generation` in the replacement."""

    path: str
    slot: int
    old: str
    new: str
    region_path: str
    region_id: UUID
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Outcome of `compare`.

    `changed` is set for REPLACE alone. `violations` says why there is nothing to do, or what
    forbids it: empty for REPLACE and GENERATION_ONLY, never empty for UNCHANGED and REJECT;
    `omitted` more are not listed.
    """

    outcome: Outcome
    changed: ChangedTarget | None = None
    violations: tuple[FieldViolation, ...] = ()
    omitted: int = 0


def compare(original: Construction, replacement: Construction) -> Comparison:
    """Judge `replacement` against `original`. Never raises; both may be any parsed construction."""
    walk = _Walk()
    top = walk.pair(original, replacement, "")
    if len(walk.changed) > 1:
        _refuse_several_targets(walk)
    if isinstance(top, _VolumePair):
        if walk.changed:
            _refuse_nested_sub_volumes(walk, top)
        elif walk.raised and not _first_sub_volume_takes_part(top):
            _refuse_raises_elsewhere(walk, top)
    if walk.violations.count:
        found = walk.violations
        return Comparison(Outcome.REJECT, violations=found.listed, omitted=found.omitted)
    if walk.changed:
        return Comparison(Outcome.REPLACE, walk.changed[0])
    if walk.raised:
        return Comparison(Outcome.GENERATION_ONLY)
    return Comparison(Outcome.UNCHANGED, violations=(_no_difference(original, replacement),))


@dataclass(frozen=True, slots=True)
class _RegionPair:
    """Two regions at one place; `same` when they are equal in everything."""

    path: str
    same: bool


@dataclass(frozen=True, slots=True)
class _VolumePair:
    """Two volumes at one place. `parent` is None where the replacement has no read-only parent."""

    path: str
    subs: tuple[_Pair, ...]
    parent: _Pair | None


@dataclass(frozen=True, slots=True)
class _Refused:
    """Two nodes that cannot be compared; a violation was noted."""

    path: str


_Pair = _RegionPair | _VolumePair | _Refused


@dataclass(slots=True)
class _Walk:
    """One walk over both trees: what was refused, which targets changed, which generations rose."""

    violations: ViolationList = field(default_factory=ViolationList)
    changed: list[ChangedTarget] = field(default_factory=list)
    raised: list[str] = field(default_factory=list)

    def pair(self, old: Construction, new: Construction, path: str) -> _Pair:
        """Compare the nodes at `path`."""
        if isinstance(old, VolumeSpec) and isinstance(new, VolumeSpec):
            return self._volumes(old, new, path)
        if isinstance(old, RegionSpec) and isinstance(new, RegionSpec):
            return self._regions(old, new, path)
        at = join_path(path, "type")
        if type(old) is type(new):
            text = f"is {type_name(new)}, must be a volume or a region to be compared"
            self._refuse(at, "NOT_COMPARABLE", text)
        else:
            text = f"is {type_name(new)}, must stay {type_name(old)}"
            self._refuse(at, "TYPE_CHANGED", text)
        return _Refused(path)

    def _volumes(self, old: VolumeSpec, new: VolumeSpec, path: str) -> _Pair:
        self._equal(path, "id", old.id, new.id, "ID_CHANGED")
        self._equal(path, "block_size", old.block_size, new.block_size, "BLOCK_SIZE_CHANGED")
        if len(old.sub_volumes) != len(new.sub_volumes):
            self._refuse(
                join_path(path, "sub_volumes"),
                "SUB_VOLUME_COUNT_CHANGED",
                f"has {len(new.sub_volumes)} entries, must have {len(old.sub_volumes)}",
            )
        both = zip(old.sub_volumes, new.sub_volumes, strict=False)
        subs = tuple(
            self.pair(before, after, join_path(path, f"sub_volumes[{index}]"))
            for index, (before, after) in enumerate(both)
        )
        return _VolumePair(path, subs, self._parents(old, new, path))

    def _parents(self, old: VolumeSpec, new: VolumeSpec, path: str) -> _Pair | None:
        before, after = old.read_only_parent, new.read_only_parent
        if after is None:
            return None
        at = join_path(path, PARENT)
        if before is None:
            text = "is new, must stay null: a volume never gains a read-only parent"
            self._refuse(at, "READ_ONLY_PARENT_ADDED", text)
            return _Refused(at)
        return self.pair(before, after, at)

    def _regions(self, old: RegionSpec, new: RegionSpec, path: str) -> _Pair:
        if old == new:
            return _RegionPair(path, same=True)
        before, after = old.geometry, new.geometry
        self._equal(path, "block_size", before.block_size, after.block_size, "BLOCK_SIZE_CHANGED")
        self._equal(
            path,
            "blocks_per_extent",
            before.blocks_per_extent,
            after.blocks_per_extent,
            "EXTENT_SIZE_CHANGED",
        )
        self._equal(
            path, "extent_count", before.extent_count, after.extent_count, "EXTENT_COUNT_CHANGED"
        )
        self._generations(old, new, path)
        self._options(old.options, new.options, join_path(path, "opts"))
        self._targets(old.options, new.options, path, new.generation)
        return _RegionPair(path, same=False)

    def _generations(self, old: RegionSpec, new: RegionSpec, path: str) -> None:
        at = join_path(path, "gen")
        if new.generation < old.generation:
            text = f"is {new.generation}, must be at least {old.generation}"
            self._refuse(at, "GENERATION_LOWERED", text)
        elif new.generation > old.generation:
            self.raised.append(at)

    def _options(self, old: RegionOptions, new: RegionOptions, path: str) -> None:
        self._equal(path, "id", old.id, new.id, "ID_CHANGED")
        self._equal(path, "lossy", old.lossy, new.lossy, "LOSSY_CHANGED")
        self._equal(
            path, "flush_timeout", old.flush_timeout, new.flush_timeout, "FLUSH_TIMEOUT_CHANGED"
        )
        hidden = (
            ("key", old.key == new.key, "KEY_CHANGED"),
            ("cert_pem", old.cert_pem == new.cert_pem, "TLS_CHANGED"),
            ("key_pem", old.key_pem == new.key_pem, "TLS_CHANGED"),
            ("root_cert_pem", old.root_cert_pem == new.root_cert_pem, "TLS_CHANGED"),
        )
        for name, same, reason in hidden:
            if not same:
                self._refuse(join_path(path, name), reason, "differs, must be as in the original")
        self._equal(path, "control", old.control, new.control, "CONTROL_CHANGED")
        self._equal(path, "read_only", old.read_only, new.read_only, "READ_ONLY_CHANGED")

    def _targets(self, old: RegionOptions, new: RegionOptions, path: str, generation: int) -> None:
        at = join_path(path, "opts.target")
        counts = (("the original", len(old.targets)), ("the replacement", len(new.targets)))
        wrong = [f"{count} in {who}" for who, count in counts if count != TARGETS_PER_REGION]
        if wrong:
            text = f"has {' and '.join(wrong)}, must have exactly {TARGETS_PER_REGION} addresses"
            self._refuse(at, "TARGET_COUNT", text)
            return
        self.changed += [
            ChangedTarget(f"{at}[{slot}]", slot, before, after, path, old.id, generation)
            for slot, (before, after) in enumerate(zip(old.targets, new.targets, strict=True))
            if before != after
        ]

    def _equal(self, path: str, name: str, old: object, new: object, reason: str) -> None:
        if old != new:
            text = f"is {_shown(new)}, must be {_shown(old)} as in the original"
            self._refuse(join_path(path, name), reason, text)

    def _refuse(self, at: str, reason: str, description: str) -> None:
        self.violations.refuse(at, reason, description)


def _shown(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case _:
            return str(value)


def _refuse_several_targets(walk: _Walk) -> None:
    for target in walk.changed:
        text = (
            f"is {target.new}, was {target.old}: one of {len(walk.changed)} targets that changed, "
            "must be the only one; replace one target at a time"
        )
        walk.violations.refuse(target.path, "TWO_TARGETS_CHANGED", text)


def _refuse_nested_sub_volumes(walk: _Walk, top: _VolumePair) -> None:
    """A target is not replaced under a top with volumes among its sub-volumes."""
    text = "is volume, must be region: a target is replaced only where no volume is nested"
    for sub in top.subs:
        if isinstance(sub, _VolumePair):
            walk.violations.refuse(join_path(sub.path, "type"), "NESTED_VOLUME", text)


def _no_difference(original: Construction, replacement: Construction) -> FieldViolation:
    if original == replacement:
        at = "sub_volumes" if isinstance(replacement, VolumeSpec) else "opts.target"
        text = "is as in the original, must differ in one target or have a higher gen"
        return FieldViolation(at, text, "NO_DIFFERENCE")
    text = "is dropped and nothing else differs, must come with a new target or a higher gen"
    return FieldViolation("read_only_parent", text, "NO_DIFFERENCE")


def _first_sub_volume_takes_part(top: _VolumePair) -> bool:
    return bool(top.subs) and not _wholly_same(top.subs[0])


def _wholly_same(pair: _Pair) -> bool:
    """Whether nothing differs below; a volume whose replacement has no parent never counts so."""
    match pair:
        case _RegionPair():
            return pair.same
        case _VolumePair():
            subs = all(_wholly_same(sub) for sub in pair.subs)
            return subs and pair.parent is not None and _wholly_same(pair.parent)
        case _:
            return False


def _refuse_raises_elsewhere(walk: _Walk, top: _VolumePair) -> None:
    if not top.subs:
        text = "rose, must not: the volume has no sub-volume whose gen could rise with it"
    else:
        text = "rose, must not rise unless a gen of sub_volumes[0] rises or a target changes"
    for path in walk.raised:
        walk.violations.refuse(path, "FIRST_SUB_VOLUME_UNCHANGED", text)
