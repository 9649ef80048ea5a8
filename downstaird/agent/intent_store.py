"""The intent file on a real disk, and the lock that keeps a second agent off its root.

    ROOT/agent.lock             flock of the agent that runs
    ROOT/agent.intent           what the host is to have
    ROOT/agent.intent.previous  the same before its last change
    ROOT/agent.spare            room for the next change on a disk that is full
    ROOT/regions/ID/            the regions
    ROOT/output/ID.txt          what their processes print

Invariants: `store` returns once the file is durable under its name; at every moment one whole file
has that name, once there was one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from downstaird.agent.core.intent import Intent
from downstaird.agent.core.intent_file import decode, encode
from stairlib.model.errors import DataError, LimitError, StairwellError, StateError

REGIONS = "regions"
OUTPUT = "output"
_LOCK = "agent.lock"
_FILE = "agent.intent"
# Above what the file comes to with all records of regions that are gone: a full disk is made room
# on by destroying regions, which must be stored first.
_SPARE_BYTES = 4 << 20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class IntentStore:
    """The intent below a root. Used by one thread at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / _FILE
        self._lock = -1

    def open(self) -> Intent:
        """Locks the root and reads what is wanted; a new root is made ready. StateError ROOT_LOCKED
        or INTENT_MISSING, DataError."""
        try:
            (self.root / OUTPUT).mkdir(parents=True, exist_ok=True)
            self._take_lock()
            return self._load()
        except OSError as error:
            self.close()
            raise _failed("use", self.root, error) from error
        except StairwellError:
            self.close()
            raise

    def close(self) -> None:
        """Lets the root go."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _take_lock(self) -> None:
        path = self.root / _LOCK
        # Not inherited: the regions' processes outlive us and must not keep it.
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise StateError(
                f"another agent keeps the regions in {self.root}: stop it, or give another --root",
                reason="ROOT_LOCKED",
                root=str(self.root),
            ) from None

    def _load(self) -> Intent:
        regions = self.root / REGIONS
        if self.path.exists():
            regions.mkdir(exist_ok=True)
            return decode(self.path.read_bytes(), str(self.path))
        if regions.is_dir() and any(regions.iterdir()):
            raise StateError(
                f"{regions} holds regions, and {self.path}, which says what they are, is missing: "
                f"put it back, from {self.path}.previous if need be, or give another --root",
                reason="INTENT_MISSING",
                file=str(self.path),
            )
        # The file is there before the first region can be.
        self.store(Intent())
        regions.mkdir(exist_ok=True)
        sync_directory(self.root)
        return Intent()

    def store(self, intent: Intent, *, more: bool = False) -> None:
        """Makes it what the host is to have; `more` than before, for which the spare room is not
        spent. LimitError NO_SPACE, StairwellError INTENT_NOT_STORED: then what was stored before
        still counts."""
        spare = self.path.with_name("agent.spare")
        try:
            try:
                self._write(intent)
            except OSError as error:
                if more or error.errno not in _NO_SPACE or not spare.exists():
                    raise
                spare.unlink()
                self._write(intent)
        except OSError as error:
            raise _failed("write", self.path, error) from error
        if not spare.exists():
            with contextlib.suppress(OSError):
                _set_aside(spare)

    def _write(self, intent: Intent) -> None:
        new = self.path.with_name(f"{_FILE}.new")
        with new.open("wb") as file:
            file.write(encode(intent))
            file.flush()
            os.fsync(file.fileno())
        self._keep_previous()
        new.replace(self.path)
        sync_directory(self.root)

    def _keep_previous(self) -> None:
        """By a second name, so that the file's own name is never without one."""
        if self.path.exists():
            link = self.path.with_name(f"{_FILE}.link")
            link.unlink(missing_ok=True)
            os.link(self.path, link)
            link.replace(self.path.with_name(f"{_FILE}.previous"))


def _set_aside(spare: Path) -> None:
    """Takes the room under another name first: half of it would be none. OSError."""
    part = spare.with_name(f"{spare.name}.new")
    try:
        with part.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _SPARE_BYTES)
        part.replace(spare)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def sync_directory(path: Path) -> None:
    """Makes names that came and went durable. OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _failed(doing: str, path: Path, error: OSError) -> StairwellError:
    if error.errno in _NO_SPACE:
        return LimitError(
            f"cannot {doing} {path}: {error.strerror}; make room on its file system",
            reason="NO_SPACE",
            file=str(path),
        )
    if doing == "write":
        text = f"cannot write {path}: {error.strerror}; what is wanted of this host is unchanged"
        return StairwellError(text, reason="INTENT_NOT_STORED", file=str(path))
    return DataError(f"cannot {doing} {path}: {error.strerror}", reason="IO_ERROR", file=str(path))
