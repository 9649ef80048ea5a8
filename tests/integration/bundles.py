"""What is in the archives of `stairwell bundle`."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any


def bundled_files(archive: Path) -> dict[str, bytes]:
    """The files of a bundle by their names below its folder."""
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            file = tar.extractfile(member)
            assert file is not None
            found[member.name.partition("/")[2]] = file.read()
    return found


def configurations(found: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    """What the daemons told, by address."""
    daemons = json.loads(found["configurations.json"])["daemons"]
    return {each["instance"]: each for each in daemons}


def settings(daemon: dict[str, Any]) -> dict[str, tuple[str, str, str]]:
    """(value, source, origin) by name."""
    return {
        each["name"]: (
            each.get("value", ""),
            each["source"],
            each.get("origin", ""),
        )
        for each in daemon["settings"]
    }
