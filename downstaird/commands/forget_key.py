"""`downstaird forget-key`: the way back when a region knows the wrong key for its owner's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from downstaird.regions import open_region


def forget_key(directory: Path) -> int:
    """Drops the recorded key check and nothing else, durably. The region must not be in service."""
    engine = open_region(directory)
    try:
        ownership, region_id = engine.ownership, engine.definition.id
        if not ownership.key_check:
            print(f"region {region_id} has no key recorded")
            return 0
        engine.promote(replace(ownership, key_check=b""))
    finally:
        engine.close()
    print(
        f"region {region_id} has forgotten which key is its owner's: the one that the owner "
        "activates with next is recorded"
    )
    return 0
