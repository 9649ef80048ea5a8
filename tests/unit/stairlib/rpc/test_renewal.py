"""What is made of files and made anew: never of a file that will not do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stairlib.model.errors import StateError
from stairlib.rpc.renewal import Renewed


def test_the_newest_that_could_be_used(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    loads = []

    def load() -> str:
        loads.append(path.read_text() if path.exists() else "")
        if loads[-1] in ("", "bad"):
            raise StateError("will not do")
        return loads[-1]

    renewed = Renewed("files", (path,), load)
    assert [renewed.now(), renewed.now()] == ["one", "one"]
    assert loads == ["one"]
    path.write_text("bad")
    assert [renewed.now(), renewed.now()] == ["one", "one"]
    # Tried once, and again when it changes.
    assert loads == ["one", "bad"]
    path.unlink()
    assert renewed.now() == "one"
    path.write_text("two")
    assert renewed.now() == "two"
    # Replaced by one of the same size and time.
    other = tmp_path / "other"
    other.write_text("six")
    times = path.stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(other, path)
    assert renewed.now() == "six"


def test_at_the_start_it_is_an_error(tmp_path: Path) -> None:
    def load() -> None:
        raise StateError("will not do")

    with pytest.raises(StateError):
        Renewed("files", (tmp_path / "none",), load)
