"""`dsc cmd NAME`: one question or order to a running dsc, over DscService.

Orders print nothing when they are taken. Questions print one value, or JSON with `--output json`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from stairlib.model.errors import InvalidRequestError
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import translated
from stairlib.runtime.addresses import parse_address
from stairwell.dsc.v1 import dsc_service_pb2 as pb
from stairwell.dsc.v1 import dsc_service_pb2_grpc as pb_grpc

CALL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a command was given: the member's number, and seconds."""

    cid: int | None = None
    seconds: int | None = None
    graceful: bool = False


Ask = Callable[[Any, Arguments], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Command:
    """A name people type. `needs` is "cid" or "seconds" where the command is for a number."""

    name: str
    help: str
    ask: Ask
    needs: str = ""


async def _regions(stub: Any) -> list[pb.Region]:
    reply = await stub.ListRegions(pb.ListRegionsRequest(), timeout=CALL_SECONDS)
    return list(reply.regions)


async def _region(stub: Any, arguments: Arguments) -> pb.Region:
    regions = await _regions(stub)
    assert arguments.cid is not None
    if arguments.cid >= len(regions):
        raise InvalidRequestError(
            f"there is no member {arguments.cid}; they are numbered 0 to {len(regions) - 1}"
        )
    return regions[arguments.cid]


def state_name(region: pb.Region) -> str:
    """The state as people write it."""
    return pb.RegionState.Name(region.state).removeprefix("REGION_STATE_").lower()


async def _all_running(stub: Any, _: Arguments) -> object:
    return all(r.state == pb.REGION_STATE_RUNNING for r in await _regions(stub))


async def _all_stopped(stub: Any, _: Arguments) -> object:
    up = (pb.REGION_STATE_RUNNING, pb.REGION_STATE_STARTING, pb.REGION_STATE_STOPPING)
    return not any(region.state in up for region in await _regions(stub))


async def _pid(stub: Any, arguments: Arguments) -> object:
    region = await _region(stub, arguments)
    return region.pid if region.HasField("pid") else None


async def _port(stub: Any, arguments: Arguments) -> object:
    return (await _region(stub, arguments)).port


async def _state(stub: Any, arguments: Arguments) -> object:
    return state_name(await _region(stub, arguments))


async def _uuid(stub: Any, arguments: Arguments) -> object:
    return (await _region(stub, arguments)).id


async def _region_count(stub: Any, _: Arguments) -> object:
    return len(await _regions(stub))


async def _region_info(stub: Any, _: Arguments) -> object:
    reply = await stub.GetRegionInfo(pb.GetRegionInfoRequest(), timeout=CALL_SECONDS)
    return {
        "block_size": reply.block_size,
        "blocks_per_extent": reply.blocks_per_extent,
        "extent_count": reply.extent_count,
    }


async def _read_only(stub: Any, _: Arguments) -> object:
    reply = await stub.ListRegions(pb.ListRegionsRequest(), timeout=CALL_SECONDS)
    return reply.read_only


async def _list(stub: Any, _: Arguments) -> object:
    return [
        {
            "cid": region.cid,
            "port": region.port,
            "state": state_name(region),
            "pid": region.pid if region.HasField("pid") else None,
            "restart": region.restart,
            "uuid": region.id,
            "directory": region.directory,
            "output": region.output,
        }
        for region in await _regions(stub)
    ]


def _members(arguments: Arguments) -> pb.Members:
    return pb.Members(all=True) if arguments.cid is None else pb.Members(cid=arguments.cid)


async def _start(stub: Any, arguments: Arguments) -> object:
    await stub.Start(pb.StartRequest(members=_members(arguments)), timeout=CALL_SECONDS)
    return None


async def _stop(stub: Any, arguments: Arguments) -> object:
    request = pb.StopRequest(members=_members(arguments), graceful=arguments.graceful)
    await stub.Stop(request, timeout=CALL_SECONDS)
    return None


async def _stop_rand(stub: Any, arguments: Arguments) -> object:
    request = pb.StopRequest(members=pb.Members(random=True), graceful=arguments.graceful)
    await stub.Stop(request, timeout=CALL_SECONDS)
    return None


def _restart(enabled: bool) -> Ask:
    async def ask(stub: Any, arguments: Arguments) -> object:
        request = pb.SetRestartRequest(members=_members(arguments), enabled=enabled)
        await stub.SetRestart(request, timeout=CALL_SECONDS)
        return None

    return ask


def _random(enabled: bool) -> Ask:
    async def ask(stub: Any, _: Arguments) -> object:
        await stub.SetRandomStop(pb.SetRandomStopRequest(enabled=enabled), timeout=CALL_SECONDS)
        return None

    return ask


async def _random_min(stub: Any, arguments: Arguments) -> object:
    request = pb.SetRandomStopRequest(min_seconds=arguments.seconds)
    await stub.SetRandomStop(request, timeout=CALL_SECONDS)
    return None


async def _random_max(stub: Any, arguments: Arguments) -> object:
    request = pb.SetRandomStopRequest(max_seconds=arguments.seconds)
    await stub.SetRandomStop(request, timeout=CALL_SECONDS)
    return None


async def _shutdown(stub: Any, _: Arguments) -> object:
    await stub.Shutdown(pb.ShutdownRequest(), timeout=CALL_SECONDS)
    return None


COMMANDS = (
    Command("list", "Show every member: port, state, pid, restart, region.", _list),
    Command("all-running", "Whether every member is running.", _all_running),
    Command("all-stopped", "Whether no member is running, starting or stopping.", _all_stopped),
    Command("pid", "The process of a member, null without one.", _pid, "cid"),
    Command("port", "The port of a member.", _port, "cid"),
    Command("state", "The state of a member.", _state, "cid"),
    Command("uuid", "The region id of a member.", _uuid, "cid"),
    Command("region-count", "How many members there are.", _region_count),
    Command("region-info", "Block size, extent size and extent count.", _region_info),
    Command("read-only", "Whether the members were started read-only.", _read_only),
    Command("start", "Start a member that is down.", _start, "cid"),
    Command("start-all", "Start every member that is down.", _start),
    Command("stop", "Kill a member.", _stop, "cid"),
    Command("stop-all", "Kill every member.", _stop),
    Command("stop-rand", "Kill a running member chosen at random.", _stop_rand),
    Command("enable-restart", "Start a member again when it dies.", _restart(True), "cid"),
    Command("enable-restart-all", "Start any member again when it dies.", _restart(True)),
    Command("disable-restart", "Leave a member down when it dies.", _restart(False), "cid"),
    Command("disable-restart-all", "Leave members down when they die.", _restart(False)),
    Command("enable-random-stop", "Kill a random member every now and then.", _random(True)),
    Command("disable-random-stop", "Kill no more members at random.", _random(False)),
    Command("enable-random-min", "Least seconds between random kills.", _random_min, "seconds"),
    Command("enable-random-max", "Most seconds between random kills.", _random_max, "seconds"),
    Command("shutdown", "Stop every member and end dsc.", _shutdown),
)


async def ask(server: str, command: Command, arguments: Arguments) -> object:
    """Send one command to the dsc at `server`; what it answers, None for an order."""
    address = str(parse_address(server.removeprefix("http://").rstrip("/")))
    async with open_channel(address) as channel:
        with translated(f"dsc at {address}"):
            return await command.ask(pb_grpc.DscServiceStub(channel), arguments)


def run(server: str, command: Command, arguments: Arguments, *, as_json: bool) -> int:
    """Send a command and print its answer; the exit status."""
    answer = asyncio.run(ask(server, command, arguments))
    if answer is not None or command.ask is _pid:
        print(json.dumps({command.name: answer}) if as_json else _shown(answer))
    return 0


def _shown(answer: object) -> str:
    match answer:
        case list():
            return _table(answer)
        case dict():
            return "\n".join(f"{name}: {_shown(value)}" for name, value in answer.items())
        case str():
            return answer
        case _:
            return json.dumps(answer)


def _table(rows: list[dict[str, object]]) -> str:
    names = list(rows[0]) if rows else []
    lines = [names, *([_shown(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
