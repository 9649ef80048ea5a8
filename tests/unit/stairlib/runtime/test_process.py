"""A daemon's life: signals ask it to stop, errors are one line, the exit status is main's."""

import signal
import subprocess
import sys

import pytest

PREFIX = (
    "import asyncio, sys\n"
    "from stairlib.runtime.process import run\n"
    "from stairlib.model.errors import UnavailableError\n"
)


@pytest.fixture
def start():
    """Starts a Python process with `code`, ends it for certain."""
    started = []

    def begin(code):
        process = subprocess.Popen(
            [sys.executable, "-c", PREFIX + code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


WAITING = (
    "async def main(stop):\n"
    "    print('ready', type(asyncio.get_running_loop()).__module__, flush=True)\n"
    "    await stop.event.wait()\n"
    "    print('stopping', stop.number, flush=True)\n"
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_main_to_stop(start, number):
    process = start(WAITING + "    return 3\nsys.exit(run(main))\n")
    assert process.stdout.readline() == "ready uvloop\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (out, err, process.returncode) == (f"stopping {number.value}\n", "", 3)


def test_the_second_signal_ends_it_at_once(start):
    process = start(WAITING + "    await asyncio.sleep(60)\nsys.exit(run(main))\n")
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "stopping 15\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 128 + signal.SIGINT


def test_an_error_of_the_domain_is_one_line(start):
    process = start(
        "async def main(stop):\n"
        "    raise UnavailableError('127.0.0.1:1 is in use', reason='PORT_IN_USE')\n"
        "sys.exit(run(main))\n"
    )
    out, err = process.communicate(timeout=30)
    assert (out, process.returncode) == ("", 1)
    assert err.strip().endswith("127.0.0.1:1 is in use")
    assert len(err.splitlines()) == 1


def test_an_unexpected_error_keeps_its_traceback(start):
    process = start("async def main(stop):\n    raise RuntimeError('odd')\nsys.exit(run(main))\n")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "RuntimeError: odd" in err


def test_main_may_ask_itself_to_stop(start):
    process = start(
        "async def main(stop):\n"
        "    stop.request()\n"
        "    await stop.event.wait()\n"
        "    return 0\n"
        "sys.exit(run(main))\n"
    )
    process.communicate(timeout=30)
    assert process.returncode == 0
