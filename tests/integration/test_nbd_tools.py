"""Real NBD tools against an export: what is missing on this machine is skipped, and said."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from vmmd.block.file import FileBackend
from vmmd.block.nbd import NbdExport

MIB = 1 << 20
SIZE = 32 * MIB
TOOL_SECONDS = 60.0


def need(tool: str) -> str:
    """The tool's path, or a skipped test."""
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not installed")
    return found


async def tool(*arguments: str | Path) -> str:
    """Runs a tool to its end and returns what it printed; fails the test when it fails."""
    process = await asyncio.create_subprocess_exec(
        need(str(arguments[0])),
        *map(str, arguments[1:]),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(TOOL_SECONDS):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = output.decode(errors="replace")
    assert process.returncode == 0, text
    return text


@pytest.fixture(params=[512, 4096])
async def export(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[NbdExport]:
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(SIZE)
    backend = FileBackend(disk, block_size=request.param)
    made = NbdExport(backend, "block2", socket=tmp_path / "nbd.sock", tcp=("127.0.0.1", 0))
    await made.start()
    yield made
    await made.stop()
    backend.close()


async def test_nbdinfo_reads_the_export(export: NbdExport) -> None:
    description = json.loads(await tool("nbdinfo", "--json", export.uri))
    [found] = description["exports"]
    assert found["export-size"] == SIZE
    for ability in ("can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn"):
        assert found[ability] is True, ability
    assert description["structured"] is True


async def test_nbdcopy_there_and_back(export: NbdExport, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(SIZE))
    await tool("nbdcopy", source, export.uri)
    await tool("nbdcopy", export.uri, target)
    assert target.read_bytes() == source.read_bytes()


async def test_qemu_io_writes_trims_and_reads(export: NbdExport) -> None:
    commands = (
        "write -P 7 4096 1M",
        "read -P 7 4096 1M",
        "write -f -P 9 8388608 64k",
        "discard 4096 512k",
        "read -P 0 4096 512k",
        "write -z 2M 6M",
        "read -P 0 2M 6M",
        "read -P 9 8388608 64k",
        "flush",
    )
    arguments = [part for command in commands for part in ("-c", command)]
    output = await tool("qemu-io", "-f", "raw", export.uri, *arguments)
    assert "verification failed" not in output


async def test_qemu_img_over_tcp(export: NbdExport) -> None:
    uri = f"nbd://127.0.0.1:{export.tcp_port}/block2"
    description = json.loads(await tool("qemu-img", "info", "--output", "json", uri))
    assert description["virtual-size"] == SIZE


async def test_fio_verifies_what_it_wrote(export: NbdExport) -> None:
    if "nbd" not in await tool("fio", "--enghelp"):
        pytest.skip("this fio has no nbd engine")
    await tool(
        "fio", "--name=verify", "--ioengine=nbd", f"--uri={export.uri}", "--rw=randwrite",
        "--bs=16k", "--iodepth=32", f"--size={SIZE}", "--verify=crc32c",
        "--fsync=64", "--verify_state_save=0", "--output-format=terse",
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="unix sockets named in a URI")
async def test_the_wrong_export_is_refused_by_name(export: NbdExport) -> None:
    need("nbdinfo")
    with pytest.raises(AssertionError, match="other"):
        await tool("nbdinfo", export.uri.replace("block2", "other", 1))
