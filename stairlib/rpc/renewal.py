"""What is made of files, made anew when they change: certificates and tokens, without a restart.

Looks at the files when somebody asks, not by a clock. Invariant: what cannot be used, or not yet
(a certificate is there, its key is still being written), is logged, and what was there stays.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

from stairlib.model.errors import StairwellError
from stairlib.telemetry.logs import get_logger

_log = get_logger(__name__)

_T = TypeVar("_T")
Stamp: TypeAlias = tuple[tuple[int, int, int] | None, ...]


def stamp_of(paths: Sequence[str | Path]) -> Stamp:
    """What tells one content of files from another: time, size and inode of each, None where there
    is none."""
    return tuple(_one(path) for path in paths)


def _one(path: str | Path) -> tuple[int, int, int] | None:
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class Renewed(Generic[_T]):
    """What `load` makes of the files at `paths`. Raises what `load` does, at construction alone.

    May be asked from any thread: gRPC asks for certificates from its own.
    """

    def __init__(self, what: str, paths: Sequence[str | Path], load: Callable[[], _T]) -> None:
        self._what = what
        self._paths = tuple(paths)
        self._load = load
        self._lock = threading.Lock()
        self._stamp = stamp_of(paths)
        self._value = load()

    def now(self) -> _T:
        """The newest that could be used; the same object as long as nothing changed."""
        with self._lock:
            # Before the content: a change between the two is seen the next time.
            stamp = stamp_of(self._paths)
            if stamp != self._stamp:
                self._stamp = stamp
                self._renew()
            return self._value

    def _renew(self) -> None:
        try:
            self._value = self._load()
        except StairwellError as error:
            _log.warning(f"{self._what} not renewed: those of before stay", error=error.message)
        else:
            _log.info(f"{self._what} renewed")
