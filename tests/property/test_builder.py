"""What passes the check is built, or refused in words that name the part: nothing else happens.

Requests are drawn so that most pass; files and URLs are there, missing, or too small. The machine's
own parts are put over what was built, since their limits are not the request's.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from controlplane.core.construction_check import check
from stairlib.model.construction import (
    Construction,
    FileSpec,
    RegionOptions,
    RegionSpec,
    Secret,
    UrlSpec,
    VolumeSpec,
    volume_id,
)
from stairlib.model.errors import StairwellError
from stairlib.model.geometry import Geometry
from stairlib.telemetry.tracing import Tracing
from stairlib.wire.construction import from_message, to_message
from vmmd.block import url
from vmmd.block.nbd import NbdExport
from vmmd.block.volume import Volume
from vmmd.hw.nvme.controller import NvmeController


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(url, "RETRY_FIRST_SECONDS", 0.001)
        yield


KEY = base64.b64encode(bytes(range(32))).decode()
FOLDER = Path(tempfile.gettempdir()) / "stairwell-no-such-folder"
NOWHERE = "http://127.0.0.1:1/image"


@st.composite
def requests(draw: st.DrawFn) -> Construction:
    """A request most of whose fields are right."""
    size = draw(st.sampled_from([512, 4096, 32768]))
    ports = itertools.count(1024)
    return draw(_nodes(size, ports, draw(st.integers(0, 3))))


@st.composite
def _nodes(draw: st.DrawFn, size: int, ports: Iterator[int], depth: int) -> Construction:
    kinds = ["region", "region", "file", "url"] + ["volume"] * 3 * bool(depth)
    match draw(st.sampled_from(kinds)):
        case "region":
            return draw(_regions(size, ports))
        case "file":
            name = draw(st.sampled_from(["missing", "/dev/null", "/etc/hostname", "/", "x" * 300]))
            return FileSpec(draw(st.uuids()), size, str(FOLDER / name))
        case "url":
            return UrlSpec(draw(st.uuids()), size, NOWHERE)
        case _:
            inner = _nodes(size, ports, depth - 1)
            subs = tuple(draw(st.lists(inner, max_size=3)))
            return VolumeSpec(draw(st.uuids()), size, subs, draw(st.none() | inner))


@st.composite
def _regions(draw: st.DrawFn, size: int, ports: Iterator[int]) -> RegionSpec:
    blocks = draw(st.integers(1, (512 << 20) // size))
    extents = draw(st.integers(1, 1 << 20) | st.integers(1, 8))
    tls = str(FOLDER / "file.pem") if draw(st.integers(0, 5)) == 0 else None
    options = RegionOptions(
        id=draw(st.uuids()),
        targets=tuple(f"127.0.0.1:{next(ports)}" for _ in range(3)),
        lossy=draw(st.booleans()),
        flush_timeout=draw(st.none() | st.floats(0.0625, 3e7, width=32)),
        key=draw(st.none() | st.just(Secret(KEY))),
        cert_pem=tls,
        key_pem=tls,
        root_cert_pem=tls,
        control=draw(st.none() | st.just("127.0.0.1:0")),
        read_only=draw(st.booleans()),
    )
    generation = draw(st.integers(1, 9) | st.integers(1, (1 << 63) - 1))
    return RegionSpec(Geometry(size, blocks, extents), options, generation)


async def _built(construction: Construction, tracing: Tracing) -> str:
    try:
        volume = await Volume.open(construction, tracing=tracing)
    except StairwellError as error:
        return f"{error.reason} {error.message}"
    try:
        controller = NvmeController(volume, serial="disk", namespace_uuid=volume.id)
        export = NbdExport(volume, "disk", socket=FOLDER / "nbd.sock")
        assert controller.in_flight == 0
        assert export.name == "disk"
        status = volume.status()
        assert status.volume_id == str(volume_id(construction))
        assert status.total_bytes == volume.info.total_bytes > 0
        await volume.deactivate()
    finally:
        await volume.close()
    return "built"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(requests())
def test_what_passes_the_check_is_built_or_refused_in_words(construction: Construction) -> None:
    """Over the wire, as a machine gets it."""
    if not check(construction).valid:
        event("not valid")
        return
    tracing = Tracing("machine", "test")
    try:
        outcome = asyncio.run(_built(from_message(to_message(construction)), tracing))
        assert "INTERNAL" not in outcome
        assert KEY not in outcome
        event(outcome.split()[0])
    finally:
        tracing.shutdown()
