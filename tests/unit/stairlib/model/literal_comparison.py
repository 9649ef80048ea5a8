"""The rules of comparison, written down one after another as the original system evaluates them.

Slow, and it stops at the first rule that fails: `stairlib.model.construction_diff` must come to the
same outcome, whatever the pair. The ids of the rules are those of the case tables.
"""

from __future__ import annotations

from typing import Any

from stairlib.model.construction import Construction, RegionSpec, VolumeSpec

OPTIONS = {
    "G5": "id",
    "G6": "lossy",
    "G7": "flush_timeout",
    "G8": "key",
    "G9": "cert_pem",
    "G10": "key_pem",
    "G11": "root_cert_pem",
    "G12": "control",
    "G13": "read_only",
}
RULES = ("R1", "R2", "V1", "V2", "V3", "V4", "V5", "G0", "G1", "G2", "G3", "G4", *OPTIONS)
RULES += ("G14", "T1", "T2", "T3", "T4", "T5")


class Refused(Exception):  # noqa: N818 - an outcome
    """The first rule that fails."""


def outcome(original: Construction, replacement: Construction) -> tuple[str, str]:
    """(outcome in the words of the table, the rule that refused or "")."""
    try:
        return _judged(original, replacement), ""
    except Refused as refused:
        rule = str(refused)
        return ("unchanged" if rule == "T2" else "reject"), rule


def _judged(original: Construction, replacement: Construction) -> str:
    top = _walked(original, replacement)
    found = list(_regions(top))
    changed = [one for one in found if one == "target"]
    if len(changed) > 1:
        raise Refused("T1")
    if all(one == "same" for one in found):
        raise Refused("T2")
    if isinstance(top, str):
        return "replace" if changed else "generation_only"  # T5
    subs, _ = top
    if changed:
        if any(not isinstance(sub, str) for sub in subs):
            raise Refused("T4")
        return "replace"
    if not subs or _wholly_same(subs[0]):
        raise Refused("T3")
    return "generation_only"


def _walked(old: Construction, new: Construction) -> Any:
    """ "same", "generation" or "target" for a pair of regions; (subs, parent) for volumes, where a
    parent that the replacement does not have is "missing"."""
    if isinstance(old, VolumeSpec) and isinstance(new, VolumeSpec):
        _equal("V1", old.id, new.id)
        _equal("V2", old.block_size, new.block_size)
        _equal("V3", len(old.sub_volumes), len(new.sub_volumes))
        subs = [
            _walked(before, after)
            for before, after in zip(old.sub_volumes, new.sub_volumes, strict=True)
        ]
        if new.read_only_parent is None:
            return subs, "missing"
        if old.read_only_parent is None:
            raise Refused("V5")
        return subs, _walked(old.read_only_parent, new.read_only_parent)
    if isinstance(old, RegionSpec) and isinstance(new, RegionSpec):
        return _region(old, new)
    raise Refused("R2" if type(old) is type(new) else "R1")


def _region(old: RegionSpec, new: RegionSpec) -> str:
    if old == new:
        return "same"
    _equal("G1", old.geometry.block_size, new.geometry.block_size)
    _equal("G2", old.geometry.blocks_per_extent, new.geometry.blocks_per_extent)
    _equal("G3", old.geometry.extent_count, new.geometry.extent_count)
    if new.generation < old.generation:
        raise Refused("G4")
    for rule, name in OPTIONS.items():
        _equal(rule, getattr(old.options, name), getattr(new.options, name))
    before, after = old.options.targets, new.options.targets
    if len(before) != 3 or len(after) != 3:
        raise Refused("G14")
    changed = sum(one != other for one, other in zip(before, after, strict=True))
    if changed > 1:
        raise Refused("G14")
    return "target" if changed else "generation"


def _regions(pair: Any) -> Any:
    if pair == "missing":
        return
    if isinstance(pair, str):
        yield pair
        return
    subs, parent = pair
    for sub in (*subs, parent):
        yield from _regions(sub)


def _wholly_same(pair: Any) -> bool:
    """A volume whose replacement has no parent never is."""
    if isinstance(pair, str):
        return pair == "same"
    subs, parent = pair
    return all(map(_wholly_same, subs)) and _wholly_same(parent)


def _equal(rule: str, old: object, new: object) -> None:
    if old != new:
        raise Refused(rule)
