"""The mirrors that are compared, each of real processes, each with one NBD export on a unix socket.

A peer is QEMU's `quorum` (vote-threshold 2) over three `qemu-nbd`, all on unix sockets, all with
`cache=writeback`. Ours is three `downstaird` and the machine process that a `vmmd` started. A stack
tells its processes in two groups: the *client*, which keeps the three copies alike, and the
*servers*, which keep one copy each.
"""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import grpc
from google.protobuf import json_format

from stairwell.vmmd.v1 import machine_service_pb2 as machine_pb
from stairwell.vmmd.v1 import machine_service_pb2_grpc as machine_grpc
from stairwell.vmmd.v1 import volume_service_pb2 as volume_pb
from stairwell.vmmd.v1 import volume_service_pb2_grpc as volume_grpc

BLOCK = 4096
EXTENT_BLOCKS = 4096  # 16 MiB
COPIES = 3
BIN = Path(sys.executable).parent
READY_SECONDS = 60.0
STOP_SECONDS = 15.0
_LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Stack:
    """A mirror that runs. `client` and `servers` are process ids; `note` is how it acknowledges.
    `activation`: seconds from the wish that ours runs until it did."""

    name: str
    uri: str
    client: tuple[int, ...]
    servers: tuple[int, ...]
    note: str
    activation: float = 0.0


class BrokenMirrorError(RuntimeError):
    """A program of a stack did not do what it was started for; the text shows its last words."""


class House:
    """Starts stacks in one directory, and ends whatever it started."""

    def __init__(self, directory: Path, size: int, extent_blocks: int = EXTENT_BLOCKS) -> None:
        """size: bytes of each volume, a multiple of an extent (16 MiB unless told)."""
        assert size % (extent_blocks * BLOCK) == 0
        self._directory = directory
        self._size = size
        self._extent_blocks = extent_blocks
        self._extents = size // (extent_blocks * BLOCK)
        self.vmmd = 0
        self._stack = ExitStack()
        self._vmmd_stub: Any = None
        self._volumes: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # ---- the peer

    def quorum(self, name: str, *, read_pattern: str = "quorum") -> Stack:
        """QEMU's mirror; `read_pattern` "fifo" reads one copy and compares nothing."""
        place = self._place(name)
        servers = []
        image = ["driver=quorum", "vote-threshold=2", f"read-pattern={read_pattern}"]
        for index in range(COPIES):
            path = place / f"copy{index}.raw"
            with path.open("wb") as file:
                file.truncate(self._size)
            listens = place / f"copy{index}.sock"
            command = ["qemu-nbd", "-f", "raw", "-k", str(listens), "-t", "-e", "8"]
            servers.append(self._launch([*command, "--cache=writeback", str(path)], listens))
            image += [
                f"children.{index}.driver=nbd",
                f"children.{index}.server.type=unix",
                f"children.{index}.server.path={listens}",
            ]
        listens = place / "mirror.sock"
        command = ["qemu-nbd", "-k", str(listens), "-t", "-e", "8", "--cache=writeback"]
        client = self._launch([*command, "--image-opts", ",".join(image)], listens)
        uri = f"nbd+unix:///?socket={quote(str(listens))}"
        return Stack(
            name, uri, (client,), tuple(servers), "a write is answered by all three copies"
        )

    # ---- ours

    def stairwell(self, name: str, *, tcp: bool = False, cipher: str = "") -> Stack:
        """Our mirror; `tcp` has the data connections go over TCP. `cipher` as a region has it."""
        place = self._place(name)
        # A downstairs that cannot make its directory for sockets serves over TCP alone.
        runtime = "/dev/null" if tcp else str(place)
        servers, targets = [], []
        for index in range(COPIES):
            command = [str(BIN / "downstaird"), "run", "--create", "-d", str(place / f"r{index}")]
            command += ["-p", "0", "--address", "127.0.0.1", "-u", str(uuid.uuid4())]
            command += ["--block-size", str(BLOCK), "--extent-size", str(self._extent_blocks)]
            command += ["--extent-count", str(self._extents)]
            command += ["--log-level", "error"]
            if cipher:
                command += ["--encrypted", "--cipher", cipher]
            pid, words = self._daemon(command, {"XDG_RUNTIME_DIR": runtime})
            servers.append(pid)
            targets.append(words[1])
        uri, machine, seconds = self._machine(place.name, targets, encrypted=bool(cipher))
        note = "a write is answered once it is on its way, a flush once two of three copies have it"
        return Stack(name, uri, (machine,), tuple(servers), note, seconds)

    def _machine(
        self, name: str, targets: Sequence[str], *, encrypted: bool
    ) -> tuple[str, int, float]:
        if self._vmmd_stub is None:
            self._start_vmmd()
        volume = str(uuid.uuid4())
        options: dict[str, Any] = {"id": volume, "target": list(targets), "lossy": False}
        options["read_only"] = False
        if encrypted:
            options["key"] = base64.b64encode(secrets.token_bytes(32)).decode()
        region = {"type": "region", "block_size": BLOCK, "blocks_per_extent": self._extent_blocks}
        region |= {"extent_count": self._extents, "gen": 1, "opts": options}
        request = machine_pb.EnsureMachineRequest()
        request.spec.id, request.spec.name = name, name
        request.spec.cpus, request.spec.memory_mib = 1, 64
        disk = request.spec.disks.add(device="nvme", name="disk", pci_path="0.4.0")
        json_format.ParseDict(
            {"type": "volume", "id": volume, "block_size": BLOCK, "sub_volumes": [region]},
            disk.volume_construction_request,
        )
        made = self._vmmd_stub.EnsureMachine(request, timeout=READY_SECONDS).machine
        run = machine_pb.MACHINE_REQUESTED_STATE_RUN
        began = time.perf_counter()
        self._vmmd_stub.SetMachineState(
            machine_pb.SetMachineStateRequest(id=name, state=run), timeout=READY_SECONDS
        )
        watch = machine_pb.WatchMachineRequest(id=name)
        for message in self._vmmd_stub.WatchMachine(watch, timeout=READY_SECONDS):
            if message.machine.state == machine_pb.MACHINE_STATE_RUNNING:
                break
            if message.machine.state == machine_pb.MACHINE_STATE_FAILED:
                raise BrokenMirrorError(f"the machine of {name} failed: {message.machine.reason}")
        seconds = time.perf_counter() - began
        info = self._volumes.GetVolumeInfo(
            volume_pb.GetVolumeInfoRequest(machine_id=name, disk="disk"), timeout=READY_SECONDS
        )
        return info.volume.nbd_uri, made.process_id, seconds

    def _start_vmmd(self) -> None:
        config = self._directory / "vmmd.toml"
        config.write_text("")
        with closing(socket.create_server(("127.0.0.1", 0))) as probe:
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        command = [str(BIN / "vmmd"), "run", str(config), address, "--log-level", "error"]
        process = self._process(command, {}, stdout=subprocess.DEVNULL)
        self.vmmd = process.pid
        channel = grpc.insecure_channel(address)
        self._stack.callback(channel.close)
        try:
            grpc.channel_ready_future(channel).result(READY_SECONDS)
        except grpc.FutureTimeoutError:
            raise BrokenMirrorError(self._last_words(command)) from None
        if process.poll() is not None:
            raise BrokenMirrorError(self._last_words(command))
        self._vmmd_stub = machine_grpc.MachineServiceStub(channel)
        self._volumes = volume_grpc.VolumeServiceStub(channel)

    # ---- processes

    def _place(self, name: str) -> Path:
        place = self._directory / name.replace(" ", "-")
        place.mkdir()
        return place

    def _launch(self, command: Sequence[str], listens: Path) -> int:
        """Starts a program that is ready once its socket is there."""
        process = self._process(command, {}, stdout=subprocess.DEVNULL)
        until = time.monotonic() + READY_SECONDS
        while not listens.exists():
            if process.poll() is not None or time.monotonic() > until:
                raise BrokenMirrorError(self._last_words(command))
            time.sleep(_LOOK_SECONDS)
        return process.pid

    def _daemon(self, command: Sequence[str], env: dict[str, str]) -> tuple[int, list[str]]:
        """Starts a program that says `ready ADDRESS`."""
        process = self._process(command, env, stdout=subprocess.PIPE)
        assert process.stdout is not None
        words = process.stdout.readline().split()
        if words[:1] != ["ready"]:
            raise BrokenMirrorError(self._last_words(command))
        return process.pid, words

    def _process(
        self, command: Sequence[str], env: dict[str, str], *, stdout: int
    ) -> subprocess.Popen[str]:
        with (self._directory / "errors.txt").open("ab") as errors:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=errors,
                text=True,
                env=os.environ | env,
            )
        self._stack.callback(_end, process)
        return process

    def _last_words(self, command: Sequence[str]) -> str:
        text = (self._directory / "errors.txt").read_text(errors="replace").strip()[-2000:]
        return f"{Path(command[0]).name} did not start: {text or 'it said nothing'}"


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def missing_programs() -> list[str]:
    """What has to be installed first, as Debian's packages."""
    needs = {"qemu-nbd": "qemu-utils", "fio": "fio"}
    return [package for program, package in needs.items() if shutil.which(program) is None]
