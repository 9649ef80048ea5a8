"""What `stairwell bundle` gathers for whoever looks into a trouble elsewhere, and its archive.

Only what the API tells, which never has a secret in it, and what metrics ports show. A part that
cannot be had is a line of `missing.txt`: a bundle of a cluster in trouble is the point of it.
"""

from __future__ import annotations

import asyncio
import io
import json
import platform
import sys
import tarfile
import time
import urllib.request
from collections.abc import Awaitable
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from google.protobuf.message import Message

from controlplane.cli.commands.instance import list_disks, list_instances
from controlplane.cli.commands.replacement import list_replacements
from controlplane.cli.commands.trace import get_trace
from controlplane.cli.plain import plain
from controlplane.cli.session import Session
from stairlib.model.errors import StairwellError
from stairlib.telemetry.otlp_file import to_json_line, traces_data
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import fleet_service_pb2 as fleet_pb
from stairwell.controlplane.v1 import replacement_service_pb2 as replacement_pb
from stairwell.telemetry.v1 import configuration_service_pb2 as configuration_pb

# The newest ones: with its transitions and its trace, one has some tens of KiB.
REPLACEMENTS_MAX = 50
# Of each disk, the newest: six minutes of fine ones.
SAMPLES_MAX = 720
METRICS_SECONDS = 10.0
METRICS_BYTES_MAX = 16 << 20


@dataclass(slots=True)
class Bundle:
    """Files by their names, and why others are not there."""

    files: dict[str, bytes] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def add(self, name: str, data: Any) -> None:
        """One file of JSON."""
        self.files[name] = json.dumps(data, indent=2).encode() + b"\n"

    async def part(self, name: str, gather: Awaitable[Any]) -> Any:
        """Adds what `gather` gives, and returns it; None when it failed, which is noted."""
        try:
            found = await gather
        except StairwellError as error:
            self.missing.append(f"{name}: {error.message}")
            return None
        self.add(name, _plain(found))
        return found

    def archive(self, folder: str) -> bytes:
        """A gzipped tar of all files, below `folder`."""
        if self.missing:
            self.files["missing.txt"] = "\n".join(self.missing).encode() + b"\n"
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            for name, data in sorted(self.files.items()):
                entry = tarfile.TarInfo(f"{folder}/{name}")
                entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
                tar.addfile(entry, io.BytesIO(data))
        return packed.getvalue()


def _plain(found: Any) -> Any:
    if isinstance(found, list):
        return [_plain(each) for each in found]
    return plain(found) if isinstance(found, Message) else found


async def gathered(session: Session, metrics: list[str]) -> Bundle:
    """Everything there is; `metrics` are addresses of metrics ports. StairwellError when the
    control plane does not answer at all."""
    bundle = Bundle()
    bundle.add("about.json", _about(session))
    # The first call is the one that says so when nobody is there.
    instances = await list_instances(session)
    bundle.add("instances.json", _plain(instances))
    disks = await bundle.part("disks.json", list_disks(session)) or []
    await _fleet(session, bundle)
    await _configurations(session, bundle)
    replacements = await bundle.part("replacements.json", list_replacements(session)) or []
    newest = sorted(replacements, key=lambda one: one.create_time.ToNanoseconds(), reverse=True)
    for one in newest[:REPLACEMENTS_MAX]:
        await _replacement(session, bundle, one.id)
    for disk in disks:
        await bundle.part(f"history/{disk.name}.json", _history(session, disk.name))
    for address in metrics:
        await _metrics(bundle, address)
    return bundle


def _about(session: Session) -> dict[str, Any]:
    return {
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "stairwell": metadata.version("stairwell"),
        "grpcio": metadata.version("grpcio"),
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "control_plane": session.settings.address,
    }


async def _fleet(session: Session, bundle: Bundle) -> None:
    fleet = session.fleet
    downstairs = fleet_pb.ListDownstairsRequest(), fleet_pb.ListDownstairsResponse
    agents = fleet_pb.ListAgentsRequest(), fleet_pb.ListAgentsResponse
    drains = fleet_pb.ListDrainsRequest(), fleet_pb.ListDrainsResponse
    policy = fleet_pb.GetFleetPolicyRequest(), fleet_pb.GetFleetPolicyResponse
    for name, call in (
        ("downstairs", session.call(fleet.ListDownstairs, *downstairs)),
        ("agents", session.call(fleet.ListAgents, *agents)),
        ("drains", session.call(fleet.ListDrains, *drains)),
        ("policy", session.call(fleet.GetFleetPolicy, *policy)),
    ):
        await bundle.part(f"fleet/{name}.json", call)


async def _configurations(session: Session, bundle: Bundle) -> None:
    """One file, and a line of what is missing for each daemon that did not tell."""
    name = "configurations.json"
    answer = await bundle.part(
        name,
        session.call(
            session.configurations.CollectConfigurations,
            configuration_pb.CollectConfigurationsRequest(),
            configuration_pb.CollectConfigurationsResponse,
        ),
    )
    for each in answer.daemons if answer is not None else ():
        if each.trouble:
            bundle.missing.append(f"{name}: {each.service} at {each.instance}: {each.trouble}")


async def _replacement(session: Session, bundle: Bundle, name: str) -> None:
    async def transitions() -> Message:
        return await session.call(
            session.replacements.GetReplacement,
            replacement_pb.GetReplacementRequest(id=name),
            replacement_pb.GetReplacementResponse,
        )

    async def trace() -> Any:
        return json.loads(to_json_line(traces_data((await get_trace(session, name)).spans)))

    await bundle.part(f"replacements/{name}.json", transitions())
    await bundle.part(f"traces/{name}.otlp.json", trace())


async def _history(session: Session, disk: str) -> Message:
    return await session.call(
        session.disks.GetDiskHistory,
        disk_pb.GetDiskHistoryRequest(name=disk, samples_max=SAMPLES_MAX),
        disk_pb.GetDiskHistoryResponse,
    )


async def _metrics(bundle: Bundle, address: str) -> None:
    name = f"metrics/{address.replace(':', '_').replace('/', '_')}.txt"

    def read() -> bytes:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=METRICS_SECONDS) as answer:
            return bytes(answer.read(METRICS_BYTES_MAX))

    try:
        bundle.files[name] = await asyncio.to_thread(read)
    except (OSError, ValueError) as error:
        bundle.missing.append(f"{name}: {error}")
