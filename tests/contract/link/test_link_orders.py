"""Orders to a link that runs: by its socket, and by the program as people type it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import sys

import pytest
import pytest_asyncio

from stairlib.link.control import Control, ask
from stairlib.link.proxy import BACK, THERE, Forward, Link
from stairlib.model.errors import InvalidRequestError, UnavailableError
from stairlib.runtime.addresses import Address

DEADLINE = 60.0
HOST = "127.0.0.1"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "link.sock"


@pytest_asyncio.fixture
async def link(path):
    made = Link([Forward(Address(HOST, 0), Address("nowhere.invalid", 1))])
    control = Control(made, path)
    await made.start()
    await control.start()
    yield made
    await control.close()
    await made.close()


async def test_what_is_set_is_shown(link, path):
    assert await ask(path, {"do": "show"}) == link.state()
    await ask(path, {"do": "set", "values": {"delay": 0.5, "rate": 1000}})
    shown = await ask(path, {"do": "set", "direction": "back", "values": {"stalled": True}})
    assert shown[THERE] == {
        "delay": 0.5, "jitter": 0.0, "rate": 1000, "loss": 0.0, "stalled": False, "bytes": 0,
    }  # fmt: skip
    assert shown[BACK] == shown[THERE] | {"stalled": True}
    assert (await ask(path, {"do": "cut"}))["cut"]
    cleared = await ask(path, {"do": "clear"})
    assert not cleared["cut"]
    assert cleared[THERE] == cleared[BACK] == shown[THERE] | {"delay": 0, "rate": 0}


@pytest.mark.parametrize(
    "request_",
    [
        {"do": "set", "values": {"loss": 2}}, {"do": "set"}, {"do": "fly"}, {}, [],
        {"do": "set", "direction": "up", "values": {"delay": 1}},
    ],
)  # fmt: skip
async def test_an_order_that_makes_no_sense_changes_nothing(link, path, request_):
    before = link.state()
    with pytest.raises(InvalidRequestError):
        await ask(path, request_)
    assert link.state() == before


async def test_lines_that_are_no_orders_are_answered_and_the_next_is_heard(link, path):
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b'what?\n{"do": "show"}\n')
    assert "error" in json.loads(await reader.readline())
    assert json.loads(await reader.readline()) == link.state()
    writer.write(b"x" * (1 << 20))
    # What was not read of the line makes its end a reset.
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), DEADLINE) == b""
    writer.close()
    assert await ask(path, {"do": "show"}) == link.state()


async def test_the_socket_is_its_owners_alone_and_goes_with_the_link(path, link):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    other = Control(link, path.parent / "missing" / "link.sock")
    with pytest.raises(UnavailableError):
        await other.start()


async def test_nobody_there_is_said(tmp_path):
    with pytest.raises(UnavailableError, match="no link answers"):
        await ask(tmp_path / "link.sock", {"do": "show"})


async def command(*words, env=None):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "stairlib.link", *map(str, words),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), DEADLINE)
    return process.returncode, out.decode(), err.decode()


async def test_the_program_as_people_type_it(tmp_path):
    env = {"XDG_RUNTIME_DIR": str(tmp_path)}
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "stairlib.link", "run", f"{HOST}:0=localhost:1", "--delay", "20ms",
        stdout=asyncio.subprocess.PIPE, env={**os.environ, **env},
    )  # fmt: skip
    try:
        ready = await asyncio.wait_for(running.stdout.readline(), DEADLINE)
        assert ready.decode().startswith(f"ready {HOST}:")
        status, out, _ = await command("set", "--rate", "4MiB", "--loss", "1%", "--stall", env=env)
        assert status == 0
        assert json.loads(out)[BACK] == {
            "delay": 0.02, "jitter": 0.0, "rate": 4 << 20, "loss": 0.01, "stalled": True,
            "bytes": 0,
        }  # fmt: skip
        status, out, _ = await command("clear", env=env)
        assert json.loads(out)[THERE]["delay"] == 0
        running.terminate()
        assert await asyncio.wait_for(running.wait(), DEADLINE) == 0
        assert not os.listdir(tmp_path)
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "nonsense"), "is not LISTEN=TARGET"),
        (("run", "unix:/a=b:1"), "TCP"),
        (("set", "--rate", "fast"), "is not a rate"),
        (("set", "--loss", "200%"), "loss must be"),
        (("show",), "no link answers"),
    ],
)
async def test_mistakes_are_one_line(tmp_path, words, said):
    status, out, err = await command(*words, env={"XDG_RUNTIME_DIR": str(tmp_path)})
    assert (status, out) == (1, "")
    assert said in err
    assert len(err.splitlines()) == 1
