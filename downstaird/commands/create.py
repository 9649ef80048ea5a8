"""`downstaird create`: makes a region, empty or from a file."""

from __future__ import annotations

from dataclasses import replace

from downstaird.commands.import_data import file_size, grown, import_file
from downstaird.config import CreateOptions
from downstaird.regions import create_region
from stairlib.model.cipher import describe_cipher
from stairlib.model.errors import StateError


def create(options: CreateOptions, import_path: str | None = None) -> int:
    """Makes the region and says so. With a file to import it gets as many extents as that takes."""
    if import_path is not None:
        if options.cipher:
            raise StateError(
                "--import-path is for regions that are not encrypted: only the upstairs has the "
                "key; leave out --encrypted, or write through the volume's machine",
                reason="REGION_ENCRYPTED",
            )
        options = replace(options, geometry=grown(options.geometry, file_size(import_path)))
    create_region(options)
    geometry = options.geometry
    print(
        f"created region {options.id} in {options.directory}: {geometry.describe()}, "
        f"{geometry.total_bytes / (1 << 20):.0f} MiB, {describe_cipher(options.cipher)}"
    )
    return 0 if import_path is None else import_file(options.directory, import_path)
