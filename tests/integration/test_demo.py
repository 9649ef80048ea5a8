"""The main job on real processes: proven, cleaned up, and ended by Ctrl-C without leftovers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.timeout(150)]

STAIRWELL = str(Path(sys.executable).parent / "stairwell")
KEYS = {
    "bytes_written",
    "guest_ios",
    "guest_errors",
    "replaced",
    "repair_bytes",
    "repair_seconds",
    "replicas_equal",
    "read_back_equal",
    "trace_id",
    "trace_services",
    "guest_p99_before_ms",
    "guest_p99_during_ms",
}
FILL_BYTES = 64 << 20


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """Where the demo keeps its data and its sockets; both must be empty in the end."""
    # Socket paths are short by need, so not below tmp_path, whose name may be long.
    import tempfile

    with tempfile.TemporaryDirectory(prefix="t-") as sockets:
        monkeypatch.setenv("TMPDIR", sockets)
        data = tmp_path / "data"
        data.mkdir()
        yield data, Path(sockets)


def processes_about(*places: Path) -> list[str]:
    """Command lines and environments of living processes that name one of the places."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        try:
            command = (folder / "cmdline").read_bytes()
            told = command + b"\0" + (folder / "environ").read_bytes()
        except OSError:
            continue
        if command and any(str(place).encode() in told for place in places):
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def assert_nothing_is_left(data: Path, sockets: Path) -> None:
    assert processes_about(data, sockets) == []
    assert list(data.iterdir()) == []
    assert list(sockets.iterdir()) == []


def test_the_main_job(places, tmp_path):
    data, sockets = places
    figures = tmp_path / "demo.json"
    picture = tmp_path / "demo.svg"
    command = [
        STAIRWELL,
        "demo",
        "--json",
        str(figures),
        "--plot",
        str(picture),
        "--dir",
        str(data),
    ]
    done = subprocess.run(
        [*command, "--bytes", str(FILL_BYTES)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all is right" in done.stdout
    result = json.loads(figures.read_text())
    assert set(result) == KEYS
    assert result["bytes_written"] >= FILL_BYTES
    assert result["repair_bytes"] >= FILL_BYTES // 2
    assert result["repair_seconds"] > 0
    assert result["guest_errors"] == 0
    assert result["guest_ios"] > FILL_BYTES >> 20
    assert result["replicas_equal"] is True
    assert result["read_back_equal"] is True
    assert result["replaced"]["slot"] == 2
    assert result["replaced"]["old"] != result["replaced"]["new"]
    assert len(result["trace_id"]) == 32
    assert {"controlplane", "vmmd", "downstairs"} <= set(result["trace_services"])
    assert result["guest_p99_before_ms"] > 0
    assert result["guest_p99_during_ms"] > 0
    assert_picture(picture)
    assert_nothing_is_left(data, sockets)


def assert_picture(path: Path) -> None:
    """It shows the guest before, during and after, and the repair's phase as a band."""
    root = ET.parse(path).getroot()
    texts = " ".join(one.text or "" for one in root.iter())
    for word in ("guest latency", "guest throughput", "before ", "during ", "after ", "verify "):
        assert word in texts
    bands = [one.get("class") for one in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert "band band-repair" in bands
    lines = {
        one.get("class"): one.get("d") for one in root.iter("{http://www.w3.org/2000/svg}path")
    }
    assert {"p50", "p99", "guest", "repair"} <= set(lines)
    # Samples of half a second: three seconds before, three after, and the repair.
    assert lines["guest"].count("L") >= 8


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"]
)
def test_interrupted_it_leaves_nothing(places, number, status):
    data, sockets = places
    demo = subprocess.Popen(
        [STAIRWELL, "demo", "--dir", str(data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
    )
    with demo:
        assert demo.stdout is not None
        seen = ""
        for line in demo.stdout:
            seen += line
            if "all serve" in line:
                break
        assert processes_about(data) != [], seen
        demo.send_signal(number)
        began = time.monotonic()
        seen += demo.stdout.read()
        assert demo.wait(timeout=60) == status, seen
        assert time.monotonic() - began < 30
    assert "Traceback" not in seen
    assert_nothing_is_left(data, sockets)


def test_a_place_that_cannot_be_used_is_refused(places):
    data, sockets = places
    done = subprocess.run(
        [STAIRWELL, "demo", "--dir", "/proc/nowhere"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "--dir" in done.stderr
    assert "Traceback" not in done.stderr
    assert_nothing_is_left(data, sockets)
