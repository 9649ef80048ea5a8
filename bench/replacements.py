"""Many replacements in flight in one control plane: what an answer takes, what is lost, what grows.

    .venv/bin/python -m bench.replacements [--replacements N] [--rounds R] [--seconds S] [--turns]

A real `controlplane` process on SQLite, with a vmmd and downstairs that are fakes in a process of
their own (bench/fakes.py: real gRPC servers that keep no blocks). It creates N instances, replaces
a member of each, and while all repairs move measures in alternating rounds, without and with 100
idle watchers: the time of a GetReplacement (asked for one at a time, 50 a second, of any
replacement), the control plane's processor time, and its memory. Beside it, as `noise`, by how much
the client's own sleeps are late: what the machine does to anybody. One follower of each replacement
is there all the time and counts what it is told; at the end every transition must have come once
and in order. Memory is looked at once a second from when all repairs have begun. It is judged
before the rounds, over three minutes in which the same is asked and nobody watches idly, and after
what is bounded has filled: the memory of spans, and the looks at the whole fleet, twice, which
take three minutes too. What counts is by how much it grows in the second half of these. What the
rounds with their watchers come to is in the figures by minute. On a machine that does other things
too the times say little; then `--turns` tells what the loop's turns take of the processor
(bench/turns.py). Exits with status 1 when a transition is lost, when p99 is above the goal in the
median round, when memory still grows in the second half, when the watchers cost more than the
rounds without them differ, or when a turn in a thousand is longer than its goal.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import uvloop
from google.protobuf import json_format

from bench.figures import resident_mib
from stairlib.rpc.channel import open_channel
from stairlib.telemetry.span_store import MAX_SPANS
from stairwell.controlplane.v1 import disk_service_pb2 as disk_pb
from stairwell.controlplane.v1 import disk_service_pb2_grpc as disk_grpc
from stairwell.controlplane.v1 import instance_service_pb2 as instance_pb
from stairwell.controlplane.v1 import instance_service_pb2_grpc as instance_grpc
from stairwell.controlplane.v1 import replacement_service_pb2 as pb
from stairwell.controlplane.v1 import replacement_service_pb2_grpc as replacement_grpc

ROOT = Path(__file__).resolve().parents[1]
GOAL_SECONDS = 0.020
ASKS_PER_SECOND = 50
IDLE_WATCHERS = 100
# Of one repair: so slow that none ends while it is measured, so fast that each look is news.
BYTES_PER_SECOND = 1 << 20
CALL_SECONDS = 60.0
BEGUN_AT_ONCE = 8
# Two rounds of looks at the fleet.
SETTLE_SECONDS = 170.0
HOLD_SECONDS = 180.0
# What a turn of the loop may use of the processor, but for one in a thousand.
GOAL_TURN_MS = 5.0
NOISE_SECONDS = 0.007
MEMORY_SECONDS = 1.0
# Above this in the second half it is not flat. What the allocator makes of objects that do not
# become more is less.
MEMORY_GROWTH_MAX_MIB_PER_MINUTE = 0.5
# What cannot be told from nothing, where the rounds without watchers happen to be all alike.
WATCHERS_PROCESSOR_MIN = 0.01


@dataclass
class Follower:
    """What one watch was told."""

    numbers: list[int] = field(default_factory=list)
    messages: int = 0
    state: int = 0
    repairing: asyncio.Event = field(default_factory=asyncio.Event)


class Plane:
    """The control plane under test, its fakes, and a client."""

    def __init__(
        self,
        process: subprocess.Popen[str],
        fakes: Any,
        channel: Any,
        port: int,
        turns: Path | None,
    ) -> None:
        self.process, self.fakes, self.port = process, fakes, port
        self._turns = turns
        self.instances: Any = instance_grpc.InstanceServiceStub(channel)
        self.disks: Any = disk_grpc.DiskServiceStub(channel)
        self.replacements: Any = replacement_grpc.ReplacementServiceStub(channel)
        self.followers: dict[str, Follower] = {}

    def rate(self, bytes_per_second: float) -> None:
        self.fakes.stdin.write(f"{bytes_per_second}\n")
        self.fakes.stdin.flush()

    def processor_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mib(self) -> float:
        return resident_mib(self.process.pid)

    async def turns(self) -> dict[str, float]:
        """What its loop's turns took since this was last asked, in milliseconds."""
        if self._turns is None:
            return {}
        self._turns.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        async with asyncio.timeout(CALL_SECONDS):
            while not self._turns.exists():  # noqa: ASYNC110 - another process makes it
                await asyncio.sleep(0.01)
        told = json.loads(self._turns.read_text())
        return {f"turn_{name}_ms": told[name] for name in ("p99", "p999", "longest")}

    def construction(self, number: int, volume: str, gen: int, *, replaced: bool) -> dict[str, Any]:
        hosts = [f"127.{1 + number // 200}.{1 + number % 200}.{slot}" for slot in (1, 2, 3, 4)]
        members = [*hosts[:2], hosts[3] if replaced else hosts[2]]
        region = {
            "type": "region", "block_size": 4096, "blocks_per_extent": 16384, "extent_count": 128,
            "gen": gen,
            "opts": {
                "id": volume, "lossy": False, "read_only": False,
                "target": [f"{host}:{self.port}" for host in members],
            },
        }  # fmt: skip
        return {"type": "volume", "id": volume, "block_size": 4096, "sub_volumes": [region]}

    async def begin(self, number: int) -> str:
        """An instance that runs, and the replacement of its third member; the replacement's id."""
        volume, name = str(uuid4()), f"disk{number}"
        disk = {
            "device": "nvme", "name": name, "slot": 1,
            "volume_construction_request": self.construction(number, volume, 1, replaced=False),
        }  # fmt: skip
        create = {"name": f"machine{number}", "disks": [disk]}
        await self.instances.CreateInstance(
            json_format.ParseDict(create, instance_pb.CreateInstanceRequest()), timeout=CALL_SECONDS
        )
        await self.instances.SetInstanceState(
            instance_pb.SetInstanceStateRequest(
                name=create["name"], state=instance_pb.REQUESTED_STATE_RUN
            ),
            timeout=CALL_SECONDS,
        )
        wish = {"name": name, "vcr": self.construction(number, volume, 2, replaced=True)}
        answer = await self.disks.ReplaceVcr(
            json_format.ParseDict(wish, disk_pb.ReplaceVcrRequest()), timeout=CALL_SECONDS
        )
        return str(answer.replacement_id)

    async def follow(self, identity: str) -> None:
        """Counts all that a watch is told, to the end."""
        follower = self.followers[identity]
        async for told in self.replacements.WatchReplacement(
            pb.WatchReplacementRequest(id=identity)
        ):
            follower.messages += 1
            follower.state = told.replacement.state
            if follower.state == pb.REPLACEMENT_STATE_REPAIR:
                follower.repairing.set()
            follower.numbers += [each.number for each in told.transitions]

    async def asked(self, identities: list[str], seconds: float) -> list[float]:
        """Seconds that each GetReplacement took."""
        loop = asyncio.get_running_loop()
        end, due = loop.time() + seconds, loop.time()
        took: list[float] = []
        while loop.time() < end:
            due += 1 / ASKS_PER_SECOND
            await asyncio.sleep(max(0.0, due - loop.time()))
            due = max(due, loop.time())
            began = time.perf_counter()
            request = pb.GetReplacementRequest(id=random.choice(identities))
            await self.replacements.GetReplacement(request, timeout=CALL_SECONDS)
            took.append(time.perf_counter() - began)
        return took


async def sleep_late(late: list[float]) -> None:
    """By how many seconds a sleep of this process is late, again and again."""
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        await asyncio.sleep(NOISE_SECONDS)
        late.append(loop.time() - began - NOISE_SECONDS)


async def look_at_memory(plane: Plane, origin: float, points: list[tuple[float, float]]) -> None:
    """Adds (seconds since `origin`, MiB) again and again."""
    while True:
        points.append((time.perf_counter() - origin, plane.memory_mib()))
        await asyncio.sleep(MEMORY_SECONDS)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def slope(points: list[tuple[float, float]]) -> float:
    """Least squares, in y a minute of x in seconds."""
    return statistics.linear_regression(*zip(*points, strict=True)).slope * 60


def second_half(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those after the middle of the time they span."""
    middle = (points[0][0] + points[-1][0]) / 2
    return [each for each in points if each[0] >= middle]


def spoken(stack: AsyncExitStack, *arguments: str) -> tuple[subprocess.Popen[str], list[str]]:
    """A program of ours and the words of its first line; ended with the stack."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    stack.callback(ended, process)
    assert process.stdout is not None
    return process, process.stdout.readline().split()


async def started(stack: AsyncExitStack, data: Path, *, turns: bool = False) -> Plane:
    """The fakes, the control plane and a channel; ended with the stack."""
    fakes, (_, vmmd, _, port) = spoken(
        stack, "bench.fakes", "--bytes-per-second", str(BYTES_PER_SECOND)
    )
    told = data / "turns.json"
    control, words = spoken(
        stack, *(("bench.turns", str(told)) if turns else ()),
        "controlplane", "run", "127.0.0.1:0", "--vmmd", vmmd, "--data", str(data),
        "--log-level", "warning",
    )  # fmt: skip
    channel = await stack.enter_async_context(open_channel(words[3]))
    return Plane(control, fakes, channel, int(port), told if turns else None)


def ended(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def idle(plane: Plane, identity: str) -> None:
    """A watcher of something that does not change: one of the instances."""
    request = instance_pb.WatchInstanceRequest(name=identity)
    async for _ in plane.instances.WatchInstance(request):
        pass


async def in_flight(plane: Plane, count: int) -> list[str]:
    """Begins so many and waits until all are being repaired."""
    gate = asyncio.Semaphore(BEGUN_AT_ONCE)
    began = time.perf_counter()

    async def begin(number: int) -> str:
        async with gate:
            return await plane.begin(number)

    identities = await asyncio.gather(*(begin(number) for number in range(count)))
    seconds = time.perf_counter() - began
    print(f"{count} instances made and replacements begun in {seconds:.1f} s", flush=True)
    return list(identities)


async def repairing(plane: Plane) -> None:
    """Returns when every follower has seen its repair begin."""
    async with asyncio.timeout(300):
        await asyncio.gather(*(follower.repairing.wait() for follower in plane.followers.values()))


async def filled(plane: Plane, identity: str) -> None:
    """Fills the bounded memory of spans, so that what grows after it is something else."""
    calls = iter(range(MAX_SPANS))

    async def ask() -> None:
        for _ in calls:
            request = pb.GetReplacementRequest(id=identity)
            await plane.replacements.GetReplacement(request, timeout=CALL_SECONDS)

    await asyncio.gather(*(ask() for _ in range(BEGUN_AT_ONCE)))


async def measure(plane: Plane, identities: list[str], arguments: Any) -> dict[str, Any]:
    """Alternating rounds, without and with the idle watchers."""
    rounds: dict[str, list[dict[str, float]]] = {"alone": [], "watched": []}
    for _ in range(arguments.rounds):
        for kind, figures_so_far in rounds.items():
            watchers = [
                asyncio.create_task(idle(plane, f"machine{number % len(identities)}"))
                for number in range(IDLE_WATCHERS if kind == "watched" else 0)
            ]
            await asyncio.sleep(1.0)
            await plane.turns()
            used, began = plane.processor_seconds(), time.perf_counter()
            late: list[float] = []
            beside = asyncio.create_task(sleep_late(late))
            took = await plane.asked(identities, arguments.seconds)
            beside.cancel()
            share = (plane.processor_seconds() - used) / (time.perf_counter() - began)
            figures = {
                "p50_ms": 1e3 * quantile(took, 0.5), "p99_ms": 1e3 * quantile(took, 0.99),
                "noise_p99_ms": 1e3 * quantile(late, 0.99), "processor": share,
                "memory_mib": plane.memory_mib(), "load": os.getloadavg()[0],
                **await plane.turns(),
            }  # fmt: skip
            figures_so_far.append(figures)
            words = "  ".join(f"{name} {value:8.2f}" for name, value in figures.items())
            print(f"{kind:8} {words}", flush=True)
            for each in watchers:
                each.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
    return {"rounds": rounds}


# Lines in the log of a replacement that nothing held up, from Validated to Retired.
TRANSITIONS_MIN = 7


def lost(plane: Plane) -> list[str]:
    """The replacements whose followers were not told every transition once and in order."""
    return [
        identity
        for identity, follower in plane.followers.items()
        if follower.state != pb.REPLACEMENT_STATE_DONE
        or follower.numbers != list(range(len(follower.numbers)))
        or len(follower.numbers) < TRANSITIONS_MIN
    ]


async def main(arguments: Any) -> int:
    # Of this process, whose thousand streams would stop it for longer than what is measured.
    gc.disable()
    with tempfile.TemporaryDirectory(prefix="stairwell-bench-", dir=arguments.dir) as directory:
        async with AsyncExitStack() as stack:
            plane = await started(stack, Path(directory), turns=arguments.turns)
            identities = await in_flight(plane, arguments.replacements)
            plane.followers = {identity: Follower() for identity in identities}
            follows = [asyncio.create_task(plane.follow(each)) for each in identities]
            await repairing(plane)
            memory: list[tuple[float, float]] = []
            looking = asyncio.create_task(look_at_memory(plane, time.perf_counter(), memory))
            await filled(plane, identities[0])
            # Asked as later on: what it leaves takes the place of what filled the memory of spans.
            await plane.asked(identities, arguments.settle)
            settled = len(memory)
            await plane.asked(identities, arguments.hold)
            held = memory[settled:]
            found = await measure(plane, identities, arguments)
            looking.cancel()
            found |= {"memory": memory, "memory_slope": slope(second_half(held))}
            plane.rate(1e12)
            async with asyncio.timeout(300):
                await asyncio.gather(*follows)
            missing = lost(plane)
    return report(plane, found, missing, arguments)


def differ(rounds: list[dict[str, float]], name: str) -> float:
    """By how much a figure of the rounds differs, from the least to the most."""
    values = [each[name] for each in rounds]
    return max(values) - min(values)


def verdict(name: str, value: str, *, met: bool) -> bool:
    """Prints one line; `met` again."""
    print(f"{'met   ' if met else 'MISSED'}  {name:34} {value}")
    return met


def judged(found: dict[str, Any], medians: dict[str, dict[str, float]]) -> list[bool]:
    """What was measured in the rounds, against its goals."""
    alone, watched = medians["alone"], medians["watched"]
    cost = watched["processor"] - alone["processor"]
    spread = max(differ(found["rounds"]["alone"], "processor"), WATCHERS_PROCESSOR_MIN)
    growth, goal = found["memory_slope"], 1e3 * GOAL_SECONDS
    verdicts = [
        verdict(
            "p99 of GetReplacement",
            f"{alone['p99_ms']:.1f} ms, at most {goal:.0f}; p50 {alone['p50_ms']:.1f};"
            f" own sleeps are {alone['noise_p99_ms']:.0f} ms late, load {alone['load']:.1f}",
            met=alone["p99_ms"] <= goal,
        ),
        verdict(
            f"{IDLE_WATCHERS} idle watchers",
            f"{100 * cost:+.2f} % of a processor, at most {100 * spread:.2f}, by which the rounds"
            f" without them differ; p99 {watched['p99_ms'] - alone['p99_ms']:+.1f} ms",
            met=cost <= spread,
        ),
        verdict(
            "memory is flat",
            f"{growth:+.2f} MiB a minute in the second half, at most"
            f" {MEMORY_GROWTH_MAX_MIB_PER_MINUTE}",
            met=growth <= MEMORY_GROWTH_MAX_MIB_PER_MINUTE,
        ),
    ]
    if "turn_p999_ms" in alone:
        verdicts.append(
            verdict(
                "turns of the loop, p99.9",
                f"{alone['turn_p999_ms']:.1f} ms of the processor, at most {GOAL_TURN_MS:.0f};"
                f" p99 {alone['turn_p99_ms']:.1f}, longest {alone['turn_longest_ms']:.1f}",
                met=alone["turn_p999_ms"] <= GOAL_TURN_MS,
            )
        )
    return verdicts


def report(plane: Plane, found: dict[str, Any], missing: list[str], arguments: Any) -> int:
    medians = {
        kind: {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
        for kind, rounds in found["rounds"].items()
    }
    told = sum(len(follower.numbers) for follower in plane.followers.values())
    messages = sum(follower.messages for follower in plane.followers.values())
    by_minute = {int(at // 60): mib for at, mib in found["memory"]}
    print("\nMiB at the end of each minute: " + " ".join(f"{x:.1f}" for x in by_minute.values()))
    print(f"processor: {60 * medians['alone']['processor']:.1f} s a minute")
    verdicts = judged(found, medians)
    verdicts.append(
        verdict(
            "no transition is lost",
            f"{told} told in {messages} messages, {len(missing)} replacements with a loss",
            met=not missing,
        )
    )
    if arguments.out is not None:
        summary = {**found, "medians": medians, "transitions": told, "lost": missing}
        arguments.out.write_text(json.dumps(summary, indent=1) + "\n")
    return int(not all(verdicts))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replacements", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5, help="of each kind")
    parser.add_argument("--seconds", type=float, default=15.0, help="of a round")
    parser.add_argument(
        "--settle", type=float, default=SETTLE_SECONDS, help="before the first round"
    )
    parser.add_argument(
        "--hold", type=float, default=HOLD_SECONDS, help="in which memory is judged"
    )
    parser.add_argument("--turns", action="store_true", help="measure the turns of the loop too")
    parser.add_argument(
        "--dir", type=Path, help="where the state is kept, on a disk to be measured"
    )
    parser.add_argument("--out", type=Path, help="write all figures there, as JSON")
    sys.exit(uvloop.run(main(parser.parse_args())))
