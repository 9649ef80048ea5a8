"""The fuzzer's harness runs without atheris too; runs themselves are tests/property's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.fuzz.hostile_guest import seeds

HARNESS = Path(__file__).parent / "fuzz_nvme.py"


def test_an_input_that_was_found_can_be_run_again(tmp_path: Path) -> None:
    found = tmp_path / "crash-1"
    found.write_bytes(seeds()[-1])
    ran = subprocess.run(
        [sys.executable, str(HARNESS), "--again", str(found)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert ran.stdout == "nothing is wrong with it\n"
