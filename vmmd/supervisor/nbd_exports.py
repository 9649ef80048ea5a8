"""The disks of this host's machines as the NBD gateway names them.

A disk is called by its name where one machine has a disk of that name, and by MACHINE/NAME in any
case (the machine's name or its id). Where that means two, it means none, and the error says so.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from stairlib.model.errors import NotFoundError, StateError
from stairlib.rpc.errors import translated
from stairlib.runtime.addresses import Address
from stairwell.vmmd.v1 import volume_service_pb2 as pb
from stairwell.vmmd.v1.volume_service_pb2_grpc import VolumeServiceStub
from vmmd.core.machine import MachineRecord
from vmmd.supervisor.machines import Machines

CALL_SECONDS = 5.0
NBD_PORT = 10809
_EVERYWHERE = ("0.0.0.0", "::")


def shown_names(records: Sequence[MachineRecord]) -> list[str]:
    """Of every disk of these machines, as short as it may be."""
    disks = [(record, disk) for record in records for disk in record.disks]
    count = Counter(disk for _, disk in disks)
    return [
        disk if count[disk] == 1 else f"{record.name or record.id}/{disk}" for record, disk in disks
    ]


def named_disk(records: Sequence[MachineRecord], name: str) -> tuple[str, str]:
    """(machine id, disk) of that name; the empty name means the only disk there is.

    NotFoundError when there is none; StateError when there are two.
    """
    found = list(_candidates(records, name))
    if len(found) == 1:
        return found[0]
    if found:
        what = f"{len(found)} disks" + (f' are called "{name}"' if name else " are here")
        raise StateError(f"{what}: ask for MACHINE/DISK", reason="AMBIGUOUS")
    raise NotFoundError(
        "disk", name, f'no machine that runs here has a disk "{name}": `nbdinfo --list` has names'
    )


def name_of_disk(records: Sequence[MachineRecord], machine: str, disk: str) -> str:
    """The shortest name that means this disk of the machine with that id; empty when none does."""
    found = [record for record in records if record.id == machine and disk in record.disks]
    for record in found:
        for name in (disk, f"{record.name}/{disk}", f"{record.id}/{disk}"):
            if set(_candidates(records, name)) == {(machine, disk)}:
                return name
    return ""


def gateway_uri(address: Address, name: str, *, tls: bool) -> str:
    """How clients of other hosts write an export of the gateway that listens there.

    A listener on all addresses of its host is told by the host's name, which is also what the
    certificate has to be for.
    """
    host = socket.gethostname() if address.host in _EVERYWHERE else address.host
    where = f"[{host}]" if ":" in host else host
    port = "" if address.port == NBD_PORT else f":{address.port}"
    return f"{'nbds' if tls else 'nbd'}://{where}{port}/{quote(name)}"


def _candidates(records: Sequence[MachineRecord], name: str) -> Iterator[tuple[str, str]]:
    for record in records:
        for disk in record.disks:
            if name in ("", disk, f"{record.name}/{disk}", f"{record.id}/{disk}"):
                yield record.id, disk


class NbdExports:
    """Of living machines. Satisfies `gateway.Exports`."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines

    def _records(self) -> list[MachineRecord]:
        return [process.record for process in self._machines.living()]

    def names(self) -> Sequence[str]:
        """As `shown_names`."""
        return shown_names(self._records())

    async def socket_of(self, name: str) -> str:
        """Where the machine's process serves it; as `named_disk`, and UnavailableError when the
        process does not answer."""
        machine, disk = named_disk(self._records(), name)
        stub: Any = VolumeServiceStub(self._machines.channel(machine))
        request = pb.GetVolumeInfoRequest(machine_id=machine, disk=disk)
        with translated("machine process"):
            answer: pb.GetVolumeInfoResponse = await stub.GetVolumeInfo(
                request, timeout=CALL_SECONDS
            )
        return parse_qs(urlsplit(answer.volume.nbd_uri).query)["socket"][0]

    def uri(self, address: Address, machine: str, disk: str, *, tls: bool) -> str:
        """As `gateway_uri`, of a disk of the machine with that id; empty when it has no name."""
        name = name_of_disk(self._records(), machine, disk)
        return gateway_uri(address, name, tls=tls) if name else ""
