"""The document's processes, of which only the ports are changed."""

from __future__ import annotations

from pathlib import Path

from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from stairwell.vmmd.v1 import volume_service_pb2_grpc as volume_grpc
from tests.integration.cluster import LOOPBACK, Cluster
from tests.ports import free_ports

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DOCUMENT_PORTS = (8810, 8820, 8830, 8840)


class House(Cluster):
    """The document's processes: dsc with four downstairs, vmmd, the control plane."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.base = free_ports(4, step=10)
        control = free_ports(1)
        self.dsc = self.program(
            "dsc",
            [
                "dsc", "start", "--create", "--cleanup", "--extent-size", "16384",
                "--extent-count", "128", "--block-size", "4096", "--region-count", "4",
                "--port-base", str(self.base), "--region-dir", str(folder / "regions"),
                "--output-dir", str(folder / "output"), "--control", f"{LOOPBACK}:{control}",
            ],
            control,
        )  # fmt: skip
        self.vmmd.command[2] = str(EXAMPLES / "server.toml")

    def port(self, document: int) -> int:
        """The port that stands for one of the document's."""
        return self.base + document - DOCUMENT_PORTS[0]

    def example(self, name: str) -> Path:
        """A file of the document with the ports of this house, and no other change."""
        text = (EXAMPLES / name).read_text()
        for port in DOCUMENT_PORTS:
            text = text.replace(f":{port}", f":{self.port(port)}")
        path = self.folder / name
        path.write_text(text)
        return path

    def daemons(self) -> list[str]:
        """The addresses of every daemon."""
        downstairs = [f"{LOOPBACK}:{self.port(port)}" for port in DOCUMENT_PORTS]
        return [self.controlplane.address, self.vmmd.address, self.dsc.address, *downstairs]

    async def limit_before(self, bytes_per_second: int) -> None:
        """Slows repairs down before there is one, so that it is met while it runs."""
        request = volume_pb.SetRepairLimitsRequest(
            machine_id=(await self.get_instance("crub")).id,
            disk="block2",
            limits=volume_pb.RepairLimits(bytes_per_second_max=bytes_per_second, adaptive=False),
        )
        stub = volume_grpc.VolumeServiceStub
        await self.call(stub, "SetRepairLimits", request, at=self.vmmd.address)
