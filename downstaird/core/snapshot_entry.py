"""What names a snapshot durably: an entry of the log's records and of the state's list.

A snapshot is all that its flush covers. Its map of chunks is not in the entry: it follows from the
log until a checkpoint has put it into its place in the file `snapshots`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stairlib.model.snapshot import NAME_MAX

# How many a region can have: so many maps are read when it is opened.
SNAPSHOTS_MAX = 64

# In a record: the snapshot is taken by the record's flush, or is deleted.
TAKEN = 1
DELETED = 2

SNAPSHOT = np.dtype(
    [
        ("id", "<u8"),
        ("place", "<u4"),
        ("flags", "<u4"),
        ("generation", "<u8"),
        ("flush", "<u8"),
        ("name", f"S{NAME_MAX}"),
    ]
)
SnapshotEntries = npt.NDArray[np.void]


_NONE: SnapshotEntries = np.zeros(0, dtype=SNAPSHOT)


def no_snapshots() -> SnapshotEntries:
    """An empty section or list, always the same one."""
    return _NONE
