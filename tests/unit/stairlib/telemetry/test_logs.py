"""Log lines: where they go, what they carry, and that a stuck reader stops nobody."""

import json
import logging
import subprocess
import sys

from stairlib.telemetry import logs


def run(code, *, cwd=None):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def test_an_event_is_one_json_line_on_stderr_with_its_trace():
    done = run(
        "from stairlib.telemetry import logs, tracing\n"
        "logs.configure('vmmd')\n"
        "with tracing.Tracing('s', 'i').tracer.start_as_current_span('x'):\n"
        "    print(tracing.current_trace_id())\n"
        "    logs.get_logger('some.module').info('region opened', uuid='u-1')\n"
    )
    (line,) = done.stderr.splitlines()
    event = json.loads(line)
    assert event["event"] == "region opened"
    assert (event["uuid"], event["service"], event["level"]) == ("u-1", "vmmd", "info")
    assert (event["logger"], event["trace_id"]) == ("some.module", done.stdout.strip())


def test_the_level_is_kept_and_the_standard_library_is_included():
    done = run(
        "import logging\n"
        "from stairlib.telemetry import logs\n"
        "logs.configure('vmmd', level='warning', json=True)\n"
        "logs.get_logger('a').info('quiet')\n"
        "logs.get_logger('a').warning('loud')\n"
        "logging.getLogger('library').error('from %s', 'outside')\n"
        "logging.getLogger('grpc').info('inner workings')\n"
    )
    events = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert events == ["loud", "from outside"]
    assert done.stdout == ""


def test_a_traceback_is_kept():
    done = run(
        "from stairlib.telemetry import logs\n"
        "logs.configure('vmmd', json=True)\n"
        "try:\n"
        "    1 / 0\n"
        "except ZeroDivisionError as error:\n"
        "    logs.get_logger('a').error('failed', exc_info=error)\n"
    )
    event = json.loads(done.stderr)
    assert "ZeroDivisionError" in event["exception"]


def test_for_people_it_is_text():
    done = run(
        "from stairlib.telemetry import logs\n"
        "logs.configure('vmmd', json=False)\n"
        "logs.get_logger('a').info('region opened', uuid='u-1')\n"
    )
    assert "region opened" in done.stderr
    assert not done.stderr.startswith("{")


def test_a_reader_that_is_stuck_costs_events_and_not_time():
    # The pipe on stderr is read by nobody before the process is done with its logging.
    code = (
        "import os\n"
        "from stairlib.telemetry import logs\n"
        "logs.configure('vmmd', json=True)\n"
        "log = logs.get_logger('a')\n"
        "for number in range(30_000):\n"
        "    log.info('much to say', number=number)\n"
        "print(logs.dropped() > 0, flush=True)\n"
        "os._exit(0)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline().strip() == "True"
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def test_a_second_configuration_replaces_the_first():
    done = run(
        "from stairlib.telemetry import logs\n"
        "logs.configure('one', json=True)\n"
        "logs.get_logger('a').info('first')\n"
        "logs.configure('two', json=True)\n"
        "logs.get_logger('a').info('second')\n"
    )
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(each["service"], each["event"]) for each in events] == [
        ("one", "first"),
        ("two", "second"),
    ]


def test_a_logger_works_unconfigured(caplog):
    caplog.set_level(logging.INFO)
    logs.get_logger("plain").info("said", what=1)
    (record,) = caplog.records
    assert record.msg["event"] == "said"
