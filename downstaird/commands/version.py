"""`downstaird version`."""

from __future__ import annotations

from importlib import metadata

from downstaird.core.region_files import FORMAT_VERSION
from stairlib import native
from stairlib.wire.frame import DATA_VERSION


def version() -> int:
    """Prints the versions that must fit together."""
    print(f"downstaird {metadata.version('stairwell')}")
    print(f"data protocol {DATA_VERSION}")
    print(f"region format {FORMAT_VERSION}")
    print(f"frame loop {native.describe()}")
    return 0
