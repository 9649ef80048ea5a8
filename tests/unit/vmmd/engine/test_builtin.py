"""The built-in guest refuses what it cannot do before anything is done for it."""

from __future__ import annotations

import pytest

from stairlib.model.errors import UnsupportedError
from vmmd.engine.builtin import BuiltInEngine
from vmmd.machine.console import Console


def test_a_disk_that_cannot_be_plugged_is_refused_before_it_is_opened() -> None:
    engine = BuiltInEngine(64, [], {}, Console())
    with pytest.raises(UnsupportedError, match=r"'late'.*engine = \"qemu\""):
        engine.require_plugging("late")
