"""What every disk implementation shares: the protocol, and how an OSError becomes a DataError."""

from __future__ import annotations

import errno

from downstaird.core.disk import Buffer, Disk, File
from stairlib.model.errors import DataError, StateError

__all__ = ["Buffer", "Disk", "File", "busy", "data_error"]

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_OTHER_USER = "; run as the user that owns the region, or give it to this one with chown"
_ADVICE = {
    errno.EROFS: "; remount it for writing, or look at the region with 'run --mode ro'",
    errno.EACCES: _OTHER_USER,
    errno.EPERM: _OTHER_USER,
    errno.ENOENT: "; put the file back, or replace this region by repair from other replicas",
}


def data_error(action: str, name: str, offset: int, error: OSError) -> DataError:
    """The typed error for a failed system call on file `name`; `action`: "read", "sync", ..."""
    if error.errno in _NO_SPACE:
        return DataError(
            f"no space left to {action} {name} at byte {offset}: free space on its file system, "
            "then restart the daemon",
            reason="NO_SPACE",
            file=name,
            offset=str(offset),
        )
    advice = _ADVICE.get(error.errno or 0, "")
    return DataError(
        f"could not {action} {name} at byte {offset}: {error.strerror or error}{advice}",
        reason="IO_ERROR",
        file=name,
        offset=str(offset),
    )


def busy(name: str) -> StateError:
    """The error for a snapshot that somebody else holds."""
    return StateError(
        f"a snapshot in {name} is in use: stop what serves, clones or deletes it first",
        reason="SNAPSHOT_BUSY",
        file=name,
    )
