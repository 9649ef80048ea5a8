"""The fuzzers' harness runs without atheris too; runs themselves are tests/property's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import hostile_guest, hostile_virtqueue


@pytest.mark.parametrize(
    ("harness", "runs"),
    [("fuzz_nvme.py", hostile_guest.seeds), ("fuzz_virtio.py", hostile_virtqueue.seeds)],
)
def test_an_input_that_was_found_can_be_run_again(
    tmp_path: Path, harness: str, runs: Callable[[], list[bytes]]
) -> None:
    found = tmp_path / "crash-1"
    found.write_bytes(runs()[-1])
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).parent / harness), "--again", str(found)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert ran.stdout == "nothing is wrong with it\n"
