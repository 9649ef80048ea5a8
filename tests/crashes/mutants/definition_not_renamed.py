"""A region's definition is written in place, without a rename."""

from __future__ import annotations

import json

from downstaird.core import region_creation, region_files


def plant(patch) -> None:
    def in_place(disk, definition, layout) -> None:
        fields = region_files._fields(definition, layout.chunk_blocks)
        text = json.dumps({**fields, "checksum": region_files._checksum(fields)}, indent=2)
        file = disk.open(region_files.DEFINITION_NAME, create=True)
        file.pwritev([text.encode()], 0)
        file.datasync()
        file.close()
        disk.sync_directory()

    patch.setattr(region_creation, "write_definition", in_place)
