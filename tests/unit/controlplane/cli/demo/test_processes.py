"""Starting, watching and cleaning up processes."""

import os
import sys
import time

import pytest

from controlplane.cli.daemons import listens, program
from controlplane.cli.demo import processes as module
from controlplane.cli.demo.processes import Processes, free_port
from controlplane.cli.failure import CommandError

SERVE = """
import asyncio, sys
from stairlib.rpc.server import RpcServer
from stairlib.telemetry.tracing import Tracing
async def main():
    server = RpcServer(sys.argv[1], [], Tracing.configure("test", "test"))
    await server.start()
    server.set_serving(True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def eventually(condition) -> bool:
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


async def test_a_daemon_is_ready_when_its_health_says_so(tmp_path):
    folder = tmp_path / "demo"
    with Processes(folder, keep=False) as processes:
        daemon = await processes.start(
            "serve", lambda port: python("-c", SERVE, f"127.0.0.1:{port}")
        )
        assert listens(daemon.address)
        assert processes.ended() == []
    assert not daemon.is_running
    assert not folder.exists()


async def test_a_daemon_that_ends_is_named_with_the_end_of_its_log(tmp_path):
    broken = python("-c", "print('the region is gone'); exit(3)")
    with (
        Processes(tmp_path / "demo", keep=True) as processes,
        pytest.raises(CommandError) as caught,
    ):
        await processes.start("broken", lambda _: broken)
    assert "broken ended instead of serving (exit status 3)" in str(caught.value)
    assert caught.value.details == ("the region is gone",)
    assert (tmp_path / "demo" / "logs" / "broken.log").exists()


async def test_a_port_taken_meanwhile_is_replaced_by_another(tmp_path):
    ports = []

    def arguments(port: int) -> list[str]:
        ports.append(port)
        if len(ports) == 1:
            return python("-c", "print('address already in use'); exit(1)")
        return python("-c", SERVE, f"127.0.0.1:{port}")

    with Processes(tmp_path / "demo", keep=False) as processes:
        daemon = await processes.start("serve", arguments)
        assert daemon.address == f"127.0.0.1:{ports[1]}"
        assert ports[0] != ports[1]


async def test_a_command_that_fails_shows_its_output(tmp_path):
    with Processes(tmp_path / "demo", keep=False) as processes:
        await processes.run("good", python("-c", "pass"))
        with pytest.raises(CommandError) as caught:
            await processes.run("bad", python("-c", "print('no room'); exit(2)"))
    assert caught.value.details == ("no room",)


def test_cleaning_up_reaches_what_a_daemon_started(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STOP_SECONDS", 0.2)
    stubborn = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with Processes(tmp_path / "demo", keep=True) as processes:
        daemon = module.Daemon(
            "stubborn", python("-c", stubborn), tmp_path / "demo" / "logs" / "x.log"
        )
        processes.daemons.append(daemon)
        assert eventually(lambda: daemon.log_tail() != ())
        child = int(daemon.log_tail()[0])
        assert not gone(child)
    assert gone(daemon.process.pid)
    assert eventually(lambda: gone(child) or is_zombie(child))


def is_zombie(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "Z"


def test_cleaning_up_also_happens_after_an_interrupt(tmp_path):
    started = []

    def interrupted() -> None:
        with Processes(tmp_path / "demo", keep=False) as processes:
            sleeper = python("-c", "import time; time.sleep(600)")
            daemon = module.Daemon("sleeper", sleeper, tmp_path / "demo" / "logs" / "x.log")
            processes.daemons.append(daemon)
            started.append(daemon.process.pid)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert gone(started[0])
    assert not (tmp_path / "demo").exists()


def test_killed_daemons_are_not_missed(tmp_path):
    with Processes(tmp_path / "demo", keep=False) as processes:
        daemon = module.Daemon(
            "member",
            python("-c", "import time; time.sleep(600)"),
            tmp_path / "demo" / "logs" / "x.log",
        )
        daemon.address = "127.0.0.1:1"
        processes.daemons.append(daemon)
        processes.kill("127.0.0.1:1")
        assert not daemon.is_running
        assert processes.ended() == []


def test_the_complaints_of_a_log_are_found():
    lines = [
        '{"event": "ready", "level": "info"}',
        '{"event": "slot lost", "level": "warning", "slot": 2, "timestamp": "x"}',
        "Traceback (most recent call last):",
        '  File "x.py", line 1',
        "ModuleNotFoundError: No module named 'x'",
        "ready 127.0.0.1:1",
        "[1, 2]",
    ]
    assert module.troubled_lines(lines) == [
        "slot lost slot=2",
        "ModuleNotFoundError: No module named 'x'",
    ]
    assert len(module.troubled_lines(lines * 10)) == module.LOG_LINES_OF_ONE


def test_log_lines_are_shown_without_what_a_person_can_spare():
    line = '{"event": "ready", "level": "info", "timestamp": "t", "port": 7, "span_id": "s"}'
    assert module.condensed(line) == "ready port=7"
    assert module.condensed("plain text") == "plain text"
    assert module.condensed("[1]") == "[1]"


def test_daemons_put_their_sockets_where_they_are_cleaned_up(tmp_path):
    with Processes(tmp_path / "demo", keep=True) as processes:
        script = "import tempfile; print(tempfile.gettempdir())"
        daemon = processes._launch("where", python("-c", script))
        daemon.process.wait()
        (place,) = daemon.log_tail()
        assert os.path.isdir(place)
        assert len(place) < 40
    assert not os.path.exists(place)


def test_a_command_that_is_not_installed_is_named(tmp_path):
    with pytest.raises(CommandError, match="no-such-command-anywhere"):
        module.Daemon("x", ["no-such-command-anywhere"], tmp_path / "x.log")


@pytest.mark.parametrize("keep", [False, True])
def test_what_is_not_needed_any_more_is_removed_on_the_way(tmp_path, keep):
    with Processes(tmp_path / "demo", keep=keep) as processes:
        part = tmp_path / "demo" / "part"
        part.mkdir()
        (part / "data").write_bytes(b"x")
        processes.discard(part)
        if not keep:
            assert eventually(lambda: not part.exists())
    assert part.exists() == keep


def test_a_free_port_is_free():
    port = free_port()
    assert not listens(f"127.0.0.1:{port}")


def test_commands_are_taken_from_beside_the_interpreter():
    assert program("python") == os.path.join(os.path.dirname(sys.executable), "python")
    assert program("no-such-command-anywhere") == "no-such-command-anywhere"
