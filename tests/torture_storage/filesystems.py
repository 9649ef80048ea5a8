"""Real file systems in files: mounted on loop devices, filled, made read-only, and cut off from
their disk as by a power cut. Root is needed, and Linux."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# ext4 and xfs share it: from now on every access fails with EIO, and what the journal has not
# written is lost. _IOR('X', 125, __u32), NOLOGFLUSH.
_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = struct.pack("I", 2)
# The least that mkfs.xfs makes; the images are sparse.
_IMAGE_BYTES = {"ext4": 96 << 20, "xfs": 320 << 20}
_MKFS = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f")}


class LoopFileSystem:
    """One file system, mounted on `path`."""

    def __init__(self, kind: str, root: Path) -> None:
        self.path = root / "mounted"
        self._image = root / f"{kind}.img"
        self.path.mkdir(parents=True)
        self._image.touch()
        os.truncate(self._image, _IMAGE_BYTES[kind])
        _run(*_MKFS[kind], self._image)

    def mount(self, *options: str) -> None:
        """Also replays the journal of one that was cut off."""
        _run("mount", "-o", ",".join(("loop", *options)), self._image, self.path)

    def unmount(self) -> None:
        """The loop device goes with it."""
        _run("umount", self.path)

    def cut_off(self) -> None:
        """No access works any more, and what was not synced is lost."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, _NO_LOG_FLUSH)
        finally:
            os.close(descriptor)

    @contextmanager
    def filled(self, left: int) -> Iterator[None]:
        """With about `left` bytes free; root's reserve is used up too."""
        filler = self.path / "filler"
        with filler.open("wb", buffering=0) as file:
            found = os.statvfs(self.path)
            size = max(0, found.f_bfree * found.f_frsize - left - (1 << 20))
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, size)
            if not left:
                # The rest, down to the last block that it gives.
                file.seek(0, os.SEEK_END)
                with contextlib.suppress(OSError):
                    while file.write(bytes(4096)):
                        pass
                with contextlib.suppress(OSError):
                    os.fsync(file.fileno())
        try:
            yield
        finally:
            filler.unlink()


@contextmanager
def file_system(kind: str, root: Path) -> Iterator[LoopFileSystem]:
    """A new one, mounted; unmounted at the end. Skips, with the reason, where that cannot be."""
    if os.geteuid() != 0:
        pytest.skip("mounting file systems needs root")
    if shutil.which(_MKFS[kind][0]) is None:
        pytest.skip(f"{_MKFS[kind][0]} is not installed")
    made = LoopFileSystem(kind, root)
    try:
        made.mount()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"{kind} cannot be mounted on a loop device here: {error.stderr.strip()}")
    try:
        yield made
    finally:
        subprocess.run(["umount", str(made.path)], check=False, capture_output=True)


def _run(*command: str | Path) -> None:
    subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
