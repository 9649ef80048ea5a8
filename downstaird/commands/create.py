"""`downstaird create`: makes a region."""

from __future__ import annotations

from downstaird.config import CreateOptions
from downstaird.regions import create_region
from stairlib.model.cipher import describe_cipher


def create(options: CreateOptions) -> int:
    """Makes the region and says so."""
    create_region(options)
    geometry = options.geometry
    print(
        f"created region {options.id} in {options.directory}: {geometry.describe()}, "
        f"{geometry.total_bytes / (1 << 20):.0f} MiB, {describe_cipher(options.cipher)}"
    )
    return 0
