"""Controller cores to test: not yet enabled, or with one I/O queue pair."""

from __future__ import annotations

import pytest

from tests.unit.vmmd.hw.nvme.rig import Rig


@pytest.fixture
def make_rig() -> type[Rig]:
    return Rig


@pytest.fixture
def rig() -> Rig:
    made = Rig()
    made.enable()
    made.create_io()
    return made
