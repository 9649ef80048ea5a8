"""What a guest gets of a disk: this project's vhost-user-blk and NVMe (vfio-user) beside QEMU's own
virtio-blk and NVMe on qemu-nbd, in one guest, in one run.

    .venv/bin/python bench/guest.py [--rounds N] [--seconds S] [--json]

Real daemons: two volumes of 64 MiB, each on three downstairs, and two files of that size behind a
qemu-nbd each, which is one copy and no replication. One guest without acceleration has all four and
runs fio on one after the other: 4 KiB at random, direct, with one request at a time and with 16,
--rounds times; the order turns round each time. Printed are ratios of requests a second, made
within a round: ours to QEMU's of the same kind. Beside them QEMU's two to each other, and ours. An
emulated processor is the slowest part, so that little is seen of the disks' own speed: `make bench`
is for that. Needs QEMU 10.1 or later (`make guest-qemu`), qemu-nbd and fio.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.figures import Figure, Report
from tests.guest import newer_qemu
from tests.guest.machine import Guest, tools_disk, vfio_user_disk, vhost_user_disk
from tests.integration.cluster import Cluster
from tests.integration.volume import Volume, fresh_volume

IMAGE = Path(os.environ.get("STAIRWELL_GUEST_IMAGE") or Path.home() / ".cache/stairwell/guest")
SCRIPT = Path(__file__).parent.parent / "scripts/guest_image.py"
DISK_BYTES = 64 << 20
START_SECONDS = 20.0
WORK = ("randread", "randwrite")
DEPTHS = (1, 16)
VHOST, VFIO, QEMU_VIRTIO, QEMU_NVME = "vhost-user-blk", "vfio-user", "QEMU virtio-blk", "QEMU nvme"
# Fields of fio's terse output, version 3: requests a second.
READ_IOPS, WRITE_IOPS = 7, 48
PAIRS = (
    (VHOST, QEMU_VIRTIO),
    (VFIO, QEMU_NVME),
    (VFIO, VHOST),
    (QEMU_NVME, QEMU_VIRTIO),
)


def made_tools() -> Path:
    """The guest's kernel and its disk with fio."""
    tools = IMAGE / "tools.ext4"
    words = [sys.executable, str(SCRIPT), str(IMAGE), "--tools", str(tools)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return tools


@contextlib.contextmanager
def served_file(folder: Path, name: str) -> Iterator[Path]:
    """A file behind a qemu-nbd; its socket."""
    path, listening = folder / f"{name}.raw", folder / f"{name}.sock"
    with path.open("wb") as file:
        file.write(bytes(DISK_BYTES))
    words = ["qemu-nbd", "--persistent", "--format=raw", "--shared=4", f"--socket={listening}"]
    server = subprocess.Popen([*words, str(path)])
    try:
        deadline = time.monotonic() + START_SECONDS
        while not listening.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise OSError("qemu-nbd does not listen")
            time.sleep(0.02)
        yield listening
    finally:
        server.kill()
        server.wait()


def nbd_disk(listening: Path, device: str, name: str) -> list[str]:
    """QEMU's own device on an NBD server, at the end of the bus."""
    serial = f",serial={name}" if device == "nvme" else ""
    blocks = ",logical_block_size=4096,physical_block_size=4096"
    return [
        "-blockdev", f"driver=nbd,node-name={name},server.type=unix,server.path={listening}",
        "-device", f"{device},drive={name}{serial}{blocks}",
    ]  # fmt: skip


class Runs:
    """Requests a second of each job, disk and round."""

    def __init__(self, guest: Guest, disks: dict[str, str], seconds: float) -> None:
        self._guest, self._disks, self._seconds = guest, disks, seconds
        self.found: dict[tuple[str, int, str], list[float]] = {}

    def fill(self) -> None:
        """Every block exists before it is read."""
        for path in self._disks.values():
            self._guest.run(
                f"dd if=/dev/urandom of={path} bs=1M count=64 oflag=direct 2> /dev/null"
            )

    def round(self, number: int) -> None:
        """All jobs on all disks, once."""
        order = list(self._disks)
        order = order[number % len(order) :] + order[: number % len(order)]
        for work in WORK:
            for depth in DEPTHS:
                for name in order if number % 2 == 0 else reversed(order):
                    rate = self._one(work, depth, self._disks[name])
                    self.found.setdefault((work, depth, name), []).append(rate)

    def _one(self, work: str, depth: int, path: str) -> float:
        told = self._guest.run(
            f"/tools/run fio --name=x --filename={path} --rw={work} --bs=4k --direct=1"
            f" --ioengine=libaio --iodepth={depth} --runtime={self._seconds:g} --time_based"
            " --randrepeat=0 --output-format=terse --terse-version=3",
            60 + self._seconds,
        )
        line = next(each for each in told.splitlines() if each.startswith("3;fio"))
        return float(line.split(";")[READ_IOPS if work == "randread" else WRITE_IOPS])

    def figures(self) -> Iterator[Figure]:
        """Ratios of each job, as far as it was run."""
        for work in WORK:
            for depth in DEPTHS:
                for one, other in PAIRS:
                    pairs = zip(
                        self.found[work, depth, one], self.found[work, depth, other], strict=True
                    )
                    name = f"4K {work} QD{depth}: {one}"
                    yield Figure(name, other, [mine / theirs for mine, theirs in pairs])


async def measure(options: argparse.Namespace, report: Report, folder: Path) -> None:
    """All of it."""
    program, tools = newer_qemu.found(), made_tools()
    async with (
        Cluster.started(folder / "cluster") as cluster,
        fresh_volume(cluster, spare=False) as virtio,
        fresh_volume(cluster, spare=False) as nvme,
    ):
        with served_file(folder, "n0") as first, served_file(folder, "n1") as second:
            devices = [
                *vhost_user_disk(
                    await socket_of(virtio, "vhost_user_socket"), reconnect="reconnect-ms=1000"
                ),
                *vfio_user_disk(await socket_of(nvme, "vfio_user_socket"), "ours"),
                *nbd_disk(first, "virtio-blk-pci", "n0"),
                *nbd_disk(second, "nvme", "n1"),
                *tools_disk(tools),
            ]
            await asyncio.to_thread(in_guest, options, report, folder, program, devices)


async def socket_of(volume: Volume, field: str) -> str:
    return str(getattr((await volume.info()).volume, field))


def in_guest(
    options: argparse.Namespace, report: Report, folder: Path, program: str, devices: list[str]
) -> None:
    """The rounds, and their figures."""
    guest = Guest(folder / "guest", IMAGE, devices, qemu=(program,))
    try:
        guest.wait_ready()
        guest.run("mkdir -p /tools && mount -o ro /dev/vdc /tools")
        disks = {
            VHOST: "/dev/vda",
            QEMU_VIRTIO: "/dev/vdb",
            VFIO: nvme_named(guest, "Stairwell NVMe"),
            QEMU_NVME: nvme_named(guest, "QEMU NVMe Ctrl"),
        }
        runs = Runs(guest, disks, options.seconds)
        runs.fill()
        for number in range(options.rounds):
            report.note(f"round {number + 1} of {options.rounds}")
            runs.round(number)
        report.add(runs.figures())
    finally:
        guest.close()


def nvme_named(guest: Guest, model: str) -> str:
    """The disk of the controller of a model."""
    look = (
        f'for c in /sys/class/nvme/nvme*; do grep -q "{model}" $c/model && basename $c; done; true'
    )
    return f"/dev/{guest.run(look).split()[-1]}n1"


def main() -> int:
    """1 when something needed is missing; there are no bounds to keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one run of fio")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stairwell-guest-") as name:
        report = Report(name, as_json=options.json)
        try:
            asyncio.run(measure(options, report, Path(name)))
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            print(f"guest: {error}", file=sys.stderr)
            return 1
        return report.end()


if __name__ == "__main__":
    sys.exit(main())
