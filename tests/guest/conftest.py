"""What guests boot, made once and kept for later runs; and the cluster their disks are of.

STAIRWELL_GUEST_IMAGE: where the kernel and the initramfs are kept (~/.cache/stairwell/guest).
STAIRWELL_GUEST_QEMU: where a newer QEMU is kept (~/.cache/stairwell/guest-qemu).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.guest.machine import QEMU, missing, speaks_vfio_user
from tests.integration.cluster import Cluster
from tests.integration.volume import Volume, fresh_volume

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def image() -> Path:
    """The directory with vmlinuz and initrd; skips where guests cannot be had."""
    why = missing()
    if why:
        pytest.skip(why)
    kept = os.environ.get("STAIRWELL_GUEST_IMAGE")
    directory = Path(kept) if kept else Path.home() / ".cache/stairwell/guest"
    script = ROOT / "scripts/guest_image.py"
    done = subprocess.run(
        [sys.executable, str(script), str(directory)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no image for a guest: {done.stderr.strip()}")
    return directory


@pytest.fixture(scope="session")
def newer_qemu() -> str:
    """A QEMU that speaks vfio-user: the system's, or one that is unpacked beside it; skips where
    neither can be had."""
    if speaks_vfio_user(QEMU):
        return QEMU
    kept = os.environ.get("STAIRWELL_GUEST_QEMU")
    directory = Path(kept) if kept else Path.home() / ".cache/stairwell/guest-qemu"
    script = ROOT / "scripts/guest_qemu.py"
    done = subprocess.run(
        [sys.executable, str(script), str(directory)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no QEMU that speaks vfio-user (10.1 or later): {done.stderr.strip()}")
    program = done.stdout.strip()
    if not speaks_vfio_user(program):
        pytest.skip(f"{program} does not speak vfio-user")
    return program


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory, image: Path) -> AsyncIterator[Cluster]:
    del image
    async with Cluster.started(tmp_path_factory.mktemp("guest") / "cluster") as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def volume(cluster: Cluster) -> AsyncIterator[Volume]:
    """A running disk of 64 MiB with three members and a spare."""
    async with fresh_volume(cluster) as made:
        yield made
