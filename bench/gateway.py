"""What NBD by the gateway (TCP with TLS, through the daemon) costs beside the machine's own socket,
and what control calls of the daemon wait meanwhile.

    .venv/bin/python bench/gateway.py [--rounds N] [--seconds S] [--mib M] [--json]

Real daemons with certificates: three downstairs, vmmd with --nbd-listen, the control plane. In each
round, in an order that turns round, nbdcopy writes a disk of --mib and reads it again and again for
--seconds, and reads it once in requests of 4 KiB, one at a time and 16 at once: by the unix socket
of the machine's process, and by nbds:// through the gateway. Meanwhile one GetMachine is asked of
vmmd every 10 ms. Printed are ratios made within a round: the gateway's throughput to the socket's,
and the control calls' median and 99th percentile to those of the same round with nobody copying.
Needs nbdcopy (libnbd-bin).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.figures import Figure, Report
from stairwell.vmmd.v1 import machine_service_pb2 as machine_pb
from stairwell.vmmd.v1.machine_service_pb2_grpc import MachineServiceStub
from tests.integration.cluster import run
from tests.integration.test_mtls import SecureCluster
from tests.integration.volume import Volume

MIB = 1 << 20
EXTENT_MIB = 1
CALL_EVERY_SECONDS = 0.01
SOCKET, GATEWAY, NOBODY = "unix socket", "gateway", "nobody copies"
COPIES = ("write", "read")
DEPTHS = (1, 16)


@contextlib.asynccontextmanager
async def secured(folder: Path, size_mib: int) -> AsyncIterator[Volume]:
    """A running disk of that size, in a cluster that speaks TLS alone."""
    pki = ("--dir", folder / "pki")
    (await run("stairwell", "pki", "init", *pki)).good()
    # Nobody comes with a token here, but the control plane has a file of them.
    (await run("stairwell", "pki", "token", "otto", "--role", "operator", *pki)).good()
    cluster = SecureCluster(folder / "cluster", folder / "pki")
    try:
        await asyncio.gather(cluster.vmmd.start(), cluster.controlplane.start())
        count = size_mib // EXTENT_MIB
        members = [
            cluster.secure(cluster.downstairs(extent_count=count), "downstairs") for _ in range(3)
        ]
        own = cluster.files("vmmd")
        volume = Volume(
            cluster, members, cert_pem=own.cert, key_pem=own.key, root_cert_pem=own.root
        )
        volume.extent_count = count
        await asyncio.gather(*(program.start() for program in members))
        await volume.create()
        await volume.run()
        yield volume
    finally:
        await cluster.close()


def certificates(folder: Path) -> Path:
    """A client's, in a directory with names as libnbd wants them."""
    found = folder / "operator"
    found.mkdir()
    for name, source in (("ca-cert", "ca.pem"), ("client-cert", "operator.pem"),
                         ("client-key", "operator.key")):  # fmt: skip
        (found / f"{name}.pem").symlink_to(folder / "pki" / source)
    return found


class Runs:
    """Throughputs and the seconds of control calls, by what was done and by which way."""

    def __init__(self, volume: Volume, ways: dict[str, str], data: Path, seconds: float) -> None:
        self._volume, self._ways, self._data, self._seconds = volume, ways, data, seconds
        self.rates: dict[tuple[str, str], list[float]] = {}
        self.calls: dict[tuple[str, str], list[tuple[float, float]]] = {}

    async def round(self, number: int) -> None:
        """All of it once."""
        order = list(self._ways) if number % 2 == 0 else list(reversed(self._ways))
        async with self._asking(NOBODY, NOBODY):
            await asyncio.sleep(self._seconds)
        for what in COPIES:
            for way in order:
                async with self._asking(what, way):
                    rate = await self._copied(what, self._ways[way])
                self.rates.setdefault((what, way), []).append(rate)
        for depth in DEPTHS:
            for way in order:
                rate = await self._small(depth, self._ways[way])
                self.rates.setdefault((f"4K read QD{depth}", way), []).append(rate)

    async def _copied(self, what: str, uri: str) -> float:
        """Bytes a second."""
        ends = (str(self._data), uri) if what == "write" else (uri, "null:")
        began, moved = time.monotonic(), 0
        while time.monotonic() - began < self._seconds:
            (await run("nbdcopy", *ends)).good()
            moved += self._data.stat().st_size
        return moved / (time.monotonic() - began)

    async def _small(self, depth: int, uri: str) -> float:
        """Bytes a second, in requests of 4 KiB on one connection."""
        words = ["--request-size=4096", "--connections=1", "--threads=1", f"--requests={depth}"]
        began = time.monotonic()
        (await run("nbdcopy", *words, uri, "null:")).good()
        return self._data.stat().st_size / (time.monotonic() - began)

    @contextlib.asynccontextmanager
    async def _asking(self, what: str, way: str) -> AsyncIterator[None]:
        """Asks meanwhile; keeps the median and the 99th percentile of what the answers took."""
        taken: list[float] = []
        task = asyncio.create_task(self._ask(taken))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if len(taken) < 2:
            raise RuntimeError("vmmd did not answer")
        figures = statistics.median(taken), statistics.quantiles(taken, n=100)[-1]
        self.calls.setdefault((what, way), []).append(figures)

    async def _ask(self, taken: list[float]) -> None:
        cluster = self._volume.cluster
        request = machine_pb.GetMachineRequest(id=self._volume.instance_id)
        while True:
            began = time.monotonic()
            await cluster.call(MachineServiceStub, "GetMachine", request, at=cluster.vmmd.address)
            taken.append(time.monotonic() - began)
            await asyncio.sleep(CALL_EVERY_SECONDS)

    def figures(self) -> list[Figure]:
        """Ratios within rounds, and the absolute figures that make them plausible."""
        found = []
        for what in (*COPIES, *(f"4K read QD{depth}" for depth in DEPTHS)):
            pairs = zip(self.rates[what, GATEWAY], self.rates[what, SOCKET], strict=True)
            found.append(Figure(f"{what}: {GATEWAY}", SOCKET, [one / two for one, two in pairs]))
        idle = self.calls[NOBODY, NOBODY]
        for index, share in enumerate(("median", "99th percentile")):
            for what in COPIES:
                for way in (SOCKET, GATEWAY):
                    pairs = zip(self.calls[what, way], idle, strict=True)
                    ratios = [one[index] / two[index] for one, two in pairs]
                    name = f"GetMachine, {share}: {what} by {way}"
                    found.append(Figure(name, NOBODY, ratios))
        for what in COPIES:
            for way in (SOCKET, GATEWAY):
                values = [rate / MIB for rate in self.rates[what, way]]
                found.append(Figure(f"{what} by {way}, MiB/s", "itself", values))
        found.append(
            Figure("GetMachine, 99th percentile, ms", "itself", [each[1] * 1e3 for each in idle])
        )
        return found


async def measure(options: argparse.Namespace, report: Report, folder: Path) -> None:
    """All of it."""
    data = folder / "data"
    data.write_bytes(os.urandom(options.mib * MIB))
    async with secured(folder, options.mib) as volume:
        told = (await volume.info()).volume
        ways = {
            SOCKET: told.nbd_uri,
            GATEWAY: f"{told.nbd_gateway_uri}?tls-certificates={certificates(folder)}"
            "&tls-verify-peer=true",
        }
        runs = Runs(volume, ways, data, options.seconds)
        for number in range(options.rounds):
            report.note(f"round {number + 1} of {options.rounds}")
            await runs.round(number)
        report.add(runs.figures())


def main() -> int:
    """1 when something needed is missing; there are no bounds to keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    parser.add_argument("--mib", type=int, default=64, help="size of the disk")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if shutil.which("nbdcopy") is None:
        print("gateway: nbdcopy is not installed (Debian: libnbd-bin)", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="stairwell-gateway-") as name:
        report = Report(name, as_json=options.json)
        asyncio.run(measure(options, report, Path(name)))
        return report.end()


if __name__ == "__main__":
    sys.exit(main())
