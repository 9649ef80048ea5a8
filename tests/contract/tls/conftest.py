"""Certificates and daemons that use them, on both kinds of event loop."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from stairlib.model.geometry import Geometry
from tests.certificates import Authority
from tests.contract.downstairs_set import DownstairsSet

GEOMETRY = Geometry(4096, 64, 8)


def pytest_asyncio_loop_factories(config, item):
    """The daemons run on uvloop, whose TLS is its own; asyncio's is stricter in places."""
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "ours")


@pytest.fixture
def stranger(tmp_path):
    return Authority(tmp_path / "theirs", "somebody else")


@pytest.fixture
def client(authority):
    return authority.issue("upstairs")


@pytest.fixture
async def serve(tmp_path):
    """`await serve(files, ...)` starts a daemon with each; None is plain text."""
    made = []

    async def start(*files):
        found = DownstairsSet(tmp_path / f"set-{len(made)}", GEOMETRY, len(files), files)
        made.append(found)
        await found.start_all()
        return found

    yield start
    for found in made:
        await found.close()
