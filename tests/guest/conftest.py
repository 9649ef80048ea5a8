"""What guests boot, made once and kept for later runs; and the cluster their disks are of.

STAIRWELL_GUEST_IMAGE: where the kernel and the initramfs are kept (~/.cache/stairwell/guest).
STAIRWELL_GUESTS=required: what is needed for guests and cannot be had fails tests in place of
skipping them, but for a newer QEMU (newer_qemu.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import pytest
import pytest_asyncio

from tests.guest import newer_qemu as newer
from tests.guest.machine import missing
from tests.integration.cluster import Cluster
from tests.integration.volume import Volume, fresh_volume

ROOT = Path(__file__).resolve().parents[2]
# What a file's guests show that another file's show as well: `make test-guest-all` runs them too.
MORE_GUESTS = {
    "test_engine": (
        "test_a_disk_that_stands_still_for_a_while[45]",
        "test_the_root_file_system_on_the_volume_and_a_power_cut[nvme]",
    ),
    "test_engine_vfio_user": (
        "test_replaced_and_rebooted",
        "test_it_stands_still",
        "test_a_dead_one_is_made_again",
        "test_the_power_button",
        "test_a_stop_ends",
        "test_no_qemu_outlives",
    ),
    "test_vfio_user": (
        "test_a_member_killed_while_the_guest_writes",
        "test_a_disk_that_stands_still_for_a_while[members]",
    ),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks those."""
    for item in items:
        if item.name.startswith(MORE_GUESTS.get(item.path.stem, ("-",))):
            item.add_marker(pytest.mark.long)


def lacking(why: str) -> NoReturn:
    """Skips the test, or fails it where guests are required."""
    if os.environ.get("STAIRWELL_GUESTS") == "required":
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="session")
def image() -> Path:
    """The directory with vmlinuz and initrd; skips where guests cannot be had."""
    why = missing()
    if why:
        lacking(why)
    kept = os.environ.get("STAIRWELL_GUEST_IMAGE")
    directory = Path(kept) if kept else Path.home() / ".cache/stairwell/guest"
    script = ROOT / "scripts/guest_image.py"
    done = subprocess.run(
        [sys.executable, str(script), str(directory)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lacking(f"no image for a guest: {done.stderr.strip()}")
    return directory


@pytest.fixture(scope="session")
def tools(image: Path) -> Path:
    """A file system with fio, for a guest's /tools; skips where there is none to take."""
    script, disk = ROOT / "scripts/guest_image.py", image / "tools.ext4"
    words = [sys.executable, str(script), str(image), "--tools", str(disk)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        lacking(f"no tools for a guest: {done.stderr.strip()}")
    return disk


@pytest.fixture(scope="session")
def newer_qemu() -> str:
    """A QEMU that speaks vfio-user; skips where none can be had."""
    try:
        return newer.found()
    except FileNotFoundError as why:
        pytest.skip(f"no QEMU that speaks vfio-user (10.1 or later): {why}")


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
