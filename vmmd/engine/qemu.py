"""The engine that is a QEMU: started, spoken to by QMP, listened to, and never left behind.

It dies with this process, whatever that dies of (launch.py); this process ends it in order before
it ends itself. Everything QEMU connects to is listened on before it starts: nothing it says is
lost, and the firmware finds every disk served.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError

from stairlib.model.errors import ConflictError, StairwellError, StateError, UnavailableError
from stairlib.telemetry.logs import get_logger
from vmmd.core.guest_events import GuestEvent, GuestSignal
from vmmd.engine import launch
from vmmd.engine.core.command_line import (
    AttachedDisk,
    Board,
    command_line,
    plug_commands,
    unplug_commands,
)
from vmmd.engine.core.hypervisor import Hypervisor, Transport, transport_of
from vmmd.engine.engine import EngineDisk, OnEvent
from vmmd.machine.console import Console
from vmmd.machine.port import PortSocket

log = get_logger(__name__)

# From exec to the monitor's greeting: half a second, on a busy host more.
READY_SECONDS = 60.0
# QEMU answers between two turns of its loop, which can wait for a disk; only quick questions have
# this.
ANSWER_SECONDS = 20.0
# A QEMU that is told to quit first waits for what is in flight at its disks.
QUIT_SECONDS = 5.0
HANG_UP_SECONDS = 2.0
# A guest lets a disk go within a second, if it listens to ACPI at all.
UNPLUG_SECONDS = 30.0
# Between two looks at what was plugged in vain.
TAKE_BACK_SECONDS = 1.0
LAST_WORDS = 20
WORDS_BYTES = 4096
_MINE = "host-"


class QemuEngine:
    """One QEMU with one machine. Satisfies `engine.Engine`."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        board: Board,
        disks: Sequence[EngineDisk],
        console: Console,
        *,
        serves_vfio_user: bool = False,
    ) -> None:
        self.on_event: OnEvent = lambda _event, _reason: None
        self._hypervisor = hypervisor
        self._board = board
        self._serves_vfio_user = serves_vfio_user
        self._disks = list(disks)
        self._port = PortSocket(console, Path(board.console_socket))
        self._monitor = QMPClient(board.name)
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._said: deque[str] = deque(maxlen=LAST_WORDS)
        self._ending = False
        self._gone = asyncio.Event()
        self._reset_seen = asyncio.Event()
        self._unplugged: dict[str, asyncio.Future[None]] = {}
        # Let go by the guest when nobody waited for it any more.
        self._let_go: set[str] = set()
        # Plugged in vain, and perhaps still there.
        self._going_back: set[str] = set()
        self._failures: dict[str, int] = {}

    # --- what the machine asks

    def describe(self, disk: EngineDisk) -> str:
        """As Engine."""
        return self._transport(disk)[1]

    def _transport(self, disk: EngineDisk) -> tuple[Transport, str]:
        serves = self._serves_vfio_user
        return transport_of(disk.device, self._hypervisor, serves_vfio_user=serves)

    def _attached(self, disk: EngineDisk) -> AttachedDisk:
        transport = self._transport(disk)[0]
        by_nbd = transport is Transport.NBD
        sockets = {
            Transport.NBD: disk.nbd_socket,
            Transport.VHOST_USER: disk.vhost_user_socket,
            Transport.VFIO_USER: disk.vfio_user_socket,
        }
        info = disk.backend.info
        return AttachedDisk(
            name=disk.name,
            transport=transport,
            pci_path=disk.pci_path,
            socket=sockets[transport],
            block_size=info.block_size,
            read_only=info.read_only,
            nbd_export=disk.name if by_nbd else "",
        )

    async def start(self) -> None:
        """As Engine."""
        await self._port.listen()
        await self._monitor.start_server(self._board.monitor_socket)
        disks = [self._attached(disk) for disk in self._disks]
        command = command_line(self._hypervisor, self._board, disks, self._board.cpus)
        log.info("starting the hypervisor", command=command)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        self._spawn(self._listen_to_words())
        self._spawn(self._wait_for_end(self._process))
        await self._greeted()
        self._spawn(self._take_events())
        await self._ask("cont")

    async def _greeted(self) -> None:
        """The monitor is there; UnavailableError with QEMU's last words when it ends instead."""
        accepting = asyncio.ensure_future(self._monitor.accept())
        gone = asyncio.create_task(self._gone.wait())
        try:
            await asyncio.wait(
                {accepting, gone}, timeout=READY_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if not accepting.done():
                what = "ended" if gone.done() else f"did not answer within {READY_SECONDS:g} s"
                raise UnavailableError(f"QEMU {what}{self._words()}", reason="QEMU_FAILED")
            await accepting
        except QMPError as error:
            raise UnavailableError(
                f"QEMU's monitor: {error}{self._words()}", reason="QEMU_FAILED"
            ) from error
        finally:
            for task in (accepting, gone):
                task.cancel()
            await asyncio.gather(accepting, gone, return_exceptions=True)

    async def reset(self) -> None:
        """As Engine. QEMU resets once its disks have answered what is in flight."""
        self._reset_seen.clear()
        await self._ask("system_reset")
        await self._reset_seen.wait()
        # A guest that had stopped itself does not run after a reset alone.
        await self._ask("cont")

    async def halt(self) -> None:
        """As Engine."""
        self._ending = True
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(StairwellError, TimeoutError):
                async with asyncio.timeout(QUIT_SECONDS):
                    await self._ask("quit")
                    await self._gone.wait()
            if process.returncode is None:
                log.warning("QEMU does not quit: killing it")
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await self._gone.wait()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(HANG_UP_SECONDS):
                await self._monitor.disconnect()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._port.close()

    async def signal(self, signal: GuestSignal) -> None:
        """As Engine."""
        if signal is GuestSignal.NMI:
            await self._ask("inject-nmi")
        else:
            await self._ask("system_powerdown")

    def require_plugging(self, _name: str) -> None:
        """As Engine: this one can."""

    async def plug(self, disk: EngineDisk) -> None:
        """As Engine. Taken back when QEMU refuses it; when QEMU does not answer, which may mean
        that it does it later, then as soon as it answers again. Until that is done the place is
        taken (ConflictError)."""
        attached = self._attached(disk)
        if attached.id in self._going_back:
            raise ConflictError(
                f"a disk that was plugged in vain at {disk.pci_path} is being taken back: QEMU has"
                " to answer first; try again in a moment",
                reason="PLACE_BEING_CLEARED",
            )
        try:
            for name, arguments in plug_commands(attached, self._board.cpus):
                await self._ask(name, arguments)
        except StateError:
            await self._clear_away(attached)
            raise
        except BaseException:
            self._going_back.add(attached.id)
            self._spawn(self._take_back(attached))
            raise
        self._disks.append(disk)

    async def _take_back(self, disk: AttachedDisk) -> None:
        """QEMU obeys in order: once it has answered this, whatever it was asked before is done."""
        try:
            while not self._gone.is_set():
                try:
                    await self._ask_back(disk)
                    break
                except StateError as error:
                    if error.reason != "GUEST_HOLDS_DISK":
                        break  # there is no such device
                except UnavailableError as error:
                    log.warning("disk not yet taken back", disk=disk.name, reason=error.message)
                    await asyncio.sleep(TAKE_BACK_SECONDS)
            await self._clear_away(disk)
        finally:
            self._going_back.discard(disk.id)

    async def unplug(self, disk: EngineDisk) -> None:
        """As Engine."""
        attached = self._attached(disk)
        if attached.transport is Transport.VFIO_USER and not disk.removable:
            raise StateError(
                f"disk {disk.name!r} was there when the machine started, and QEMU "
                f"{self._hypervisor.version} cannot let such an NVMe disk go while it runs: stop "
                "the machine, or plug disks that are to be unplugged into the running one",
                reason="DISK_NOT_REMOVABLE",
            )
        if attached.id in self._unplugged:
            raise ConflictError(f"disk {disk.name!r} is being unplugged", reason="UNPLUGGING")
        if attached.id not in self._let_go:
            await self._ask_back(attached)
        self._let_go.discard(attached.id)
        await self._clear_away(attached)
        self._disks.remove(disk)

    async def _ask_back(self, disk: AttachedDisk) -> None:
        """Returns once the guest has let the device go."""
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unplugged[disk.id] = gone
        try:
            await self._ask("device_del", {"id": disk.id})
            async with asyncio.timeout(UNPLUG_SECONDS):
                await gone
        except TimeoutError:
            raise UnavailableError(
                f"the guest did not let disk {disk.name!r} go within {UNPLUG_SECONDS:g} s: it has"
                " to run, and to listen to ACPI; it is still there, ask again when it does",
                reason="GUEST_HOLDS_DISK",
            ) from None
        finally:
            self._unplugged.pop(disk.id, None)

    async def _clear_away(self, disk: AttachedDisk) -> None:
        for name, arguments in unplug_commands(disk):
            try:
                await self._ask(name, arguments)
            except StairwellError as error:
                log.info("nothing to take away", disk=disk.name, reason=error.message)

    # --- QMP

    async def _ask(self, name: str, arguments: dict[str, Any] | None = None) -> Any:
        """The answer; StateError when QEMU refuses, UnavailableError when it does not answer."""
        asked = asyncio.create_task(self._monitor.execute(name, arguments))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await asked
        except ExecuteError as error:
            raise StateError(f"QEMU refuses {name}: {error}", reason="QEMU_REFUSED") from error
        except TimeoutError as error:
            raise UnavailableError(
                f"QEMU did not answer {name} within {ANSWER_SECONDS:g} s: it may wait for a disk",
                reason="QEMU_SILENT",
            ) from error
        except QMPError as error:
            raise UnavailableError(
                f"QEMU's monitor is gone ({name}): {error}{self._words()}", reason="QEMU_GONE"
            ) from error

    async def _take_events(self) -> None:
        listener = EventListener()
        with self._monitor.listen(listener):
            async for event in listener:
                name, data = event["event"], event.get("data", {})
                self._take(str(name), data if isinstance(data, dict) else {})

    def _take(self, name: str, data: dict[str, Any]) -> None:
        if self._ending:
            return
        reason = str(data.get("reason", ""))
        if name == "SHUTDOWN" and not reason.startswith(_MINE):
            self.on_event(GuestEvent.POWERED_OFF, "the guest powered off")
        elif name == "RESET":
            self._reset_seen.set()
            if data.get("guest") or not reason.startswith(_MINE):
                self.on_event(GuestEvent.RESET, "the guest reset itself")
        elif name == "GUEST_PANICKED":
            self.on_event(GuestEvent.PANICKED, "the guest's kernel panicked")
        elif name == "DEVICE_DELETED":
            self._answer_unplug(data, None)
        elif name == "DEVICE_UNPLUG_GUEST_ERROR":
            refusal = StateError("the guest refuses to let the disk go", reason="GUEST_HOLDS_DISK")
            self._answer_unplug(data, refusal)
        elif name == "BLOCK_IO_ERROR":
            self._count_failure(data)

    def _count_failure(self, data: dict[str, Any]) -> None:
        """A disk that is gone fails each request of its guest: told at 1, 2, 4, 8, ..."""
        node = str(data.get("node-name") or data.get("device", ""))
        count = self._failures[node] = self._failures.get(node, 0) + 1
        if count & (count - 1) == 0:
            log.warning("requests of a guest failed", node=node, count=count, latest=data)

    def _answer_unplug(self, data: dict[str, Any], error: StairwellError | None) -> None:
        device = str(data.get("device", ""))
        waiting = self._unplugged.get(device)
        if waiting is None or waiting.done():
            if error is None:
                self._let_go.add(device)
            return
        if error is None:
            waiting.set_result(None)
        else:
            waiting.set_exception(error)

    # --- the process

    def _spawn(self, work: Any) -> None:
        self._tasks.append(asyncio.create_task(work, name="qemu"))

    async def _listen_to_words(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        rest = b""
        # Not by lines: one without an end would stop this, and then QEMU, whose pipe would be full.
        while piece := await self._process.stdout.read(WORDS_BYTES):
            *lines, rest = (rest + piece).split(b"\n")
            if len(rest) > WORDS_BYTES:
                lines, rest = [*lines, rest], b""
            self._heard(lines)
        self._heard([rest] if rest else [])

    def _heard(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            text = line.decode(errors="replace").rstrip()
            self._said.append(text)
            log.info("QEMU says", text=text)

    async def _wait_for_end(self, process: asyncio.subprocess.Process) -> None:
        status = await process.wait()
        # Its last words are still in the pipe.
        await asyncio.wait({self._tasks[0]}, timeout=1.0)
        self._gone.set()
        for waiting in self._unplugged.values():
            if not waiting.done():
                waiting.set_exception(UnavailableError("QEMU has ended", reason="QEMU_GONE"))
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        if not self._ending:
            log.error("QEMU ended", how=how)
            self.on_event(GuestEvent.DIED, f"QEMU ended unexpectedly ({how}){self._words()}")

    def _words(self) -> str:
        """What QEMU said last, for a message."""
        return f"; it said: {self._said[-1]}" if self._said else ""
