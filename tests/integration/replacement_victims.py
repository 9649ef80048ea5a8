"""Whom to kill while a replacement stands at one of its points, and what to kill them in.

The control plane stands still (SIGSTOP) at each point in turn: after each stored transition, and
before each effect. There one of the others is killed and started again, and the control plane goes
on.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from controlplane.breakpoints import STOP_VARIABLE
from tests.integration.cluster import MIB, Cluster, Program, until
from tests.integration.nbd_client import NbdClient
from tests.integration.test_replacement_workflow import machine_pids
from tests.integration.volume import Volume, fresh_volume

Kill = Callable[[Volume], Awaitable[None]]


@asynccontextmanager
async def tormented_volume(cluster: Cluster) -> AsyncIterator[Volume]:
    """A filled volume, before and after which all daemons of the cluster go."""
    async with fresh_volume(cluster) as made:
        await made.fill(12 * MIB)
        try:
            yield made
        finally:
            # Also after a failure: what is to be taken away has to answer.
            for daemon in (cluster.vmmd, cluster.controlplane):
                daemon.signal(signal.SIGCONT)
                if not daemon.is_running:
                    await daemon.start()


async def stopping_at(cluster: Cluster, points: tuple[str, ...]) -> None:
    """The control plane anew, to stand still at the points."""
    await cluster.controlplane.end()
    await cluster.controlplane.start(**{STOP_VARIABLE: ",".join(points)})


async def stands_still(program: Program) -> None:
    """Returns when the process has stopped itself."""

    async def state() -> str:
        assert program.is_running, program.tail()
        stat = Path(f"/proc/{program.pid}/stat").read_text()  # noqa: ASYNC240 - kept in memory
        return stat.rpartition(")")[2].split()[0]

    await until(state, lambda seen: seen == "T")


async def contents(volume: Volume) -> str:
    """A digest of all that the disk holds."""
    uri = (await volume.info()).volume.nbd_uri

    def read() -> str:
        digest = hashlib.sha256()
        with NbdClient(uri) as client:
            for offset in range(0, client.size, MIB):
                digest.update(client.read(offset, min(MIB, client.size - offset)))
        return digest.hexdigest()

    return await asyncio.to_thread(read)


async def kill_vmmd(volume: Volume) -> None:
    vmmd = volume.cluster.vmmd
    vmmd.kill()
    await vmmd.start()


async def kill_machine(volume: Volume) -> None:
    """Nobody, where the one killed before is not made again yet: who makes it stands still."""
    for pid in machine_pids(volume):
        os.kill(pid, signal.SIGKILL)


async def made_again(volume: Volume) -> None:
    """Returns when its machine has a process: the instance is told as running before it is known
    that somebody was killed."""

    async def pids() -> list[int]:
        return machine_pids(volume)

    await until(pids, bool)


async def kill_target(volume: Volume) -> None:
    volume.spare.kill()
    await volume.spare.start()


async def kill_source(volume: Volume) -> None:
    volume.downstairs[0].kill()
    await volume.downstairs[0].start()
