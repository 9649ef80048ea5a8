"""What a daemon loads when it starts."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOOK = """
import sys
import {module}
assert "structlog" in sys.modules
assert "rich" not in sys.modules
import rich.console
"""


@pytest.mark.parametrize("module", ["downstaird.daemon", "vmmd.machine.__main__"])
def test_a_daemon_does_without_rich_and_whoever_wants_it_has_it(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOK.format(module=module)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not done.returncode, done.stderr
