"""The console of a machine without a processor, from the command line to its UART and back."""

from __future__ import annotations

import asyncio
import os
import pty
import termios
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Self

import pytest
import pytest_asyncio

from tests.integration.cluster import BIN, Cluster, Program, children, until
from tests.integration.volume import Volume, fresh_volume

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module")]
SECONDS = 30.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def volume(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Volume]:
    folder = tmp_path_factory.mktemp("serial") / "cluster"
    async with Cluster.started(folder) as cluster, fresh_volume(cluster, spare=False) as made:
        yield made


class Terminal:
    """`stairwell serial` on a terminal."""

    def __init__(self, volume: Volume, *more: str) -> None:
        self._ours, theirs = pty.openpty()
        os.set_blocking(self._ours, False)
        self.before = termios.tcgetattr(theirs)
        self._theirs = theirs
        self._text = b""
        port = volume.cluster.controlplane.port
        self._start = (str(BIN / "stairwell"), "-p", str(port), "serial", volume.instance, *more)
        self.process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self.process = await asyncio.create_subprocess_exec(
            *self._start, stdin=self._theirs, stdout=self._theirs, stderr=self._theirs
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)

    def type(self, data: bytes) -> None:
        os.write(self._ours, data)

    async def until(self, mark: str) -> str:
        """What is on the screen, once the mark is."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(SECONDS):
            while mark.encode() not in self._text:
                ready = asyncio.Event()
                loop.add_reader(self._ours, ready.set)
                try:
                    await ready.wait()
                finally:
                    loop.remove_reader(self._ours)
                self._text += os.read(self._ours, 65536)
        return self._text.decode()

    async def ended(self) -> int:
        assert self.process is not None
        async with asyncio.timeout(SECONDS):
            return await self.process.wait()

    def settings(self) -> list[object]:
        return termios.tcgetattr(self._theirs)


async def test_history_first_then_keys_and_the_way_out(volume: Volume) -> None:
    async with Terminal(volume) as terminal:
        await terminal.until("built-in guest started: no processor, 1 disk(s)")
        # Keys that a terminal would take for itself go to the guest, which sends them back.
        terminal.type(b"one\x03two\r")
        await terminal.until("one\x03two\r\n")
        terminal.type(b"\x1d")
        await terminal.until("left the console")
        assert await terminal.ended() == 0
        assert terminal.settings() == terminal.before


async def test_two_at_one_console_and_a_reboot(volume: Volume) -> None:
    async with Terminal(volume) as one, Terminal(volume) as other:
        for each in (one, other):
            await each.until("built-in guest started")
        other.type(b"from the other\r")
        await one.until("from the other")
        other.type(b"panic\r")
        instance = partial(volume.cluster.get_instance, volume.instance)
        panicked = await until(instance, lambda told: told.reason != "")
        assert panicked.reason == "the guest's kernel panicked"
        (await volume.cluster.cli("state", "reboot", volume.instance, "--wait")).good()
        await one.until("started again")
        await other.until("started again")
    assert (await instance()).reason == ""


async def test_history_alone(volume: Volume) -> None:
    cli = volume.cluster.cli
    answer = (await cli("serial", "--only-history", volume.instance)).good()
    assert "built-in guest started" in answer.out
    as_json = (await cli("serial", "--only-history", "--output", "json")).good().json
    assert as_json["last_byte_offset"] > 0
    assert "built-in guest started" in as_json["text"]
    (await cli("serial", "no-such-instance")).bad("no-such-instance", "stairwell list")


async def test_what_needs_a_processor_says_so(volume: Volume) -> None:
    for words in (("nmi",), ("state", "shutdown")):
        (await volume.cluster.cli(*words)).bad("no processor", 'engine = "qemu"')


async def test_the_end_of_the_machine_is_the_end_of_the_console(volume: Volume) -> None:
    async with Terminal(volume) as terminal:
        await terminal.until("built-in guest")
        await volume.stop()
        await terminal.until("the machine has ended")
        assert await terminal.ended() == 0
        assert terminal.settings() == terminal.before
    (await volume.cluster.cli("serial")).bad("has ended")


async def test_a_host_without_qemu_says_what_to_install(tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    await asyncio.to_thread(config.write_text, 'engine = "qemu"\n')
    env = {"PATH": str(BIN)}
    program = Program("vmmd", ["vmmd", "run", str(config), "127.0.0.1:0"], 0, tmp_path / "log", env)
    program.launch()
    assert await program.ended() == 1
    assert "qemu-system-x86_64, and it is not installed: install it (Debian: qemu-system-x86" in (
        program.tail()
    )


def state(pid: int) -> str:
    """As the kernel has it; "gone" when there is no such process, or only its remains."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    return "gone" if told == "Z" else told


async def test_what_is_launched_dies_with_its_parent() -> None:
    code = "import os, subprocess, sys; from vmmd.engine import launch\n"
    code += "command = [sys.executable, '-I', '-S', launch.__file__, str(os.getpid())]\n"
    code += "subprocess.run([*command, 'sh', '-c', 'echo launched; exec sleep 1000'])"
    parent = await asyncio.create_subprocess_exec(
        str(BIN / "python"), "-c", code, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert parent.stdout is not None
        async with asyncio.timeout(SECONDS):
            assert await parent.stdout.readline() == b"launched\n"
            (launched,) = children(parent.pid)
            parent.kill()
            await parent.wait()

            async def look() -> str:
                return state(launched)

            await until(look, lambda told: told == "gone")
    finally:
        if parent.returncode is None:
            parent.kill()
            await parent.wait()
