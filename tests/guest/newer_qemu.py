"""A QEMU that speaks vfio-user: the system's, or one that is unpacked beside it.

    python -m tests.guest.newer_qemu        unpacks it where tests look for it, and says where

STAIRWELL_GUEST_QEMU: that place (~/.cache/stairwell/guest-qemu).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.guest.machine import QEMU, speaks_vfio_user

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/guest_qemu.py"
# A minute where the archive is near.
FETCH_SECONDS = 240


def found() -> str:
    """The program; FileNotFoundError says why there is none."""
    if speaks_vfio_user(QEMU):
        return QEMU
    kept = os.environ.get("STAIRWELL_GUEST_QEMU")
    directory = Path(kept) if kept else Path.home() / ".cache/stairwell/guest-qemu"
    words = [sys.executable, str(SCRIPT), str(directory)]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=FETCH_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise FileNotFoundError(f"not fetched within {FETCH_SECONDS} s") from None
    if done.returncode:
        raise FileNotFoundError(done.stderr.strip())
    program = done.stdout.strip()
    if not speaks_vfio_user(program):
        raise FileNotFoundError(f"{program} does not speak vfio-user")
    return program


if __name__ == "__main__":
    try:
        print(found())
    except FileNotFoundError as why:
        print(f"no QEMU that speaks vfio-user (10.1 or later): {why}", file=sys.stderr)
        sys.exit(1)
