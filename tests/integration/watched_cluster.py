"""A cluster whose programs all serve metrics."""

from __future__ import annotations

from collections.abc import Sequence

from stairlib.rpc.tls import TlsFiles
from tests.integration.cluster import LOOPBACK, Cluster, Program
from tests.ports import free_ports


class WatchedCluster(Cluster):
    """Each of its programs serves metrics, at `targets` by the name of its job."""

    targets: dict[str, list[str]]

    def program(
        self, name: str, command: Sequence[str], port: int, tls: TlsFiles | None = None
    ) -> Program:
        """As any cluster's, with metrics."""
        where = f"{LOOPBACK}:{free_ports(1)}"
        kind = name.partition("-")[0]
        # The first programs are made by the cluster itself.
        self.targets = getattr(self, "targets", {})
        self.targets.setdefault(f"stairwell-{kind}", []).append(where)
        return super().program(name, [*command, "--metrics", where], port, tls)
