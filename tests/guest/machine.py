"""A real guest: QEMU without acceleration, a Linux kernel, and a shell on its serial console.

Needs qemu-system-x86_64 and what scripts/guest_image.py makes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

QEMU = "qemu-system-x86_64"
# A boot takes 4 seconds on an idle machine.
BOOT_SECONDS = 90.0
COMMAND_SECONDS = 120.0


class GuestError(AssertionError):
    """The guest did not do what it was told; the text ends with its last lines."""


class Guest:
    """One guest with a console and a monitor. Its memory is shared, so that devices reach it."""

    def __init__(
        self,
        directory: Path,
        image: Path,
        devices: Sequence[str],
        *,
        qemu: Sequence[str] = (QEMU,),
        memory_mib: int = 512,
        processors: int = 2,
        reboots: bool = False,
    ) -> None:
        """`devices` are further arguments of QEMU. Without `reboots` it ends when the guest wants
        to reboot."""
        directory.mkdir(parents=True, exist_ok=True)
        self.log = directory / "console.log"
        self._console_path = directory / "console.sock"
        self._monitor_path = directory / "monitor.sock"
        self._errors = (directory / "qemu.log").open("wb")
        console = f"socket,id=console,path={self._console_path}"
        self.process = subprocess.Popen(
            [
                *qemu, "-M", "q35,memory-backend=ram", "-accel", "tcg", "-cpu", "max",
                "-object", f"memory-backend-memfd,id=ram,size={memory_mib}M,share=on",
                "-m", str(memory_mib), "-smp", str(processors), "-nodefaults", "-no-user-config",
                "-display", "none", *([] if reboots else ["-no-reboot"]),
                "-chardev", f"{console},server=on,wait=off,logfile={self.log}",
                "-serial", "chardev:console",
                "-qmp", f"unix:{self._monitor_path},server=on,wait=off",
                "-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd"),
                "-append",
                # On a busy host the emulated timers come late, which is no fault of theirs.
                "console=ttyS0 quiet panic=-1 no_timer_check",
                *devices,
            ],
            stdin=subprocess.DEVNULL, stdout=self._errors, stderr=self._errors,
        )  # fmt: skip
        self._console = self._connect(self._console_path)
        self._text = b""
        self._number = 0
        self._monitor: Monitor | None = None

    def _connect(self, path: Path) -> socket.socket:
        deadline = time.monotonic() + 20
        while True:
            made = socket.socket(socket.AF_UNIX)
            try:
                made.connect(str(path))
            except OSError:
                made.close()
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise GuestError(f"QEMU does not run: {self.errors()}") from None
                time.sleep(0.02)  # nobody tells when a socket appears
            else:
                return made

    def errors(self) -> str:
        """What QEMU itself said."""
        return Path(self._errors.name).read_text(errors="replace")[-2000:]

    def wait_ready(self) -> None:
        """Returns when the guest takes commands."""
        self._until(b"guest: ready", BOOT_SECONDS)

    def send(self, command: str) -> bytes:
        """Types a command; the mark that is printed behind it, with its status."""
        self._number += 1
        mark = f"mark-{self._number}:"
        # The mark is put together in the guest, so that what is typed is not taken for it.
        self._console.sendall(f'{command}; echo "mark-"{self._number}:$?\n'.encode())
        return mark.encode()

    def wait(self, mark: bytes, seconds: float = COMMAND_SECONDS) -> str:
        """What a sent command printed; GuestError unless its status is 0."""
        text = self._until(mark, seconds)
        status = self._until(b"\n", 10.0).strip()
        if status != b"0":
            raise GuestError(f"status {status.decode()}: {text.decode(errors='replace')[-2000:]}")
        return text.decode(errors="replace").replace("\r\n", "\n").strip()

    def run(self, command: str, seconds: float = COMMAND_SECONDS) -> str:
        """A command to its end: what it printed; GuestError unless its status is 0."""
        return self.wait(self.send(command), seconds)

    def line(self, seconds: float) -> str:
        """The next line on the console."""
        return self._until(b"\n", seconds).decode(errors="replace").strip()

    def _until(self, mark: bytes, seconds: float) -> bytes:
        """The console's text up to the mark, which is taken with it."""
        deadline = time.monotonic() + seconds
        while mark not in self._text:
            left = deadline - time.monotonic()
            self._console.settimeout(max(left, 0.01))
            try:
                data = self._console.recv(65536)
            except (TimeoutError, ConnectionResetError):
                data = b""
            if not data:
                last = self._text[-2000:].decode(errors="replace")
                raise GuestError(f"waited for {mark!r} in vain; {last}\nQEMU: {self.errors()}")
            self._text += data
        before, _mark, self._text = self._text.partition(mark)
        return before

    @property
    def monitor(self) -> Monitor:
        """QMP."""
        if self._monitor is None:
            self._monitor = Monitor(self._connect(self._monitor_path))
        return self._monitor

    def power_off(self) -> None:
        """Asks the guest to, and waits for its end."""
        self._console.sendall(b"sync; poweroff -f\n")
        self.process.wait(60)

    def close(self) -> None:
        """Ends it, however it is."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._console.close()
        if self._monitor is not None:
            self._monitor.close()
        self._errors.close()


class Monitor:
    """A QMP conversation."""

    def __init__(self, connection: socket.socket) -> None:
        self._stream = connection.makefile("rw", encoding="utf-8", newline="\n")
        connection.settimeout(30)
        self._connection = connection
        self.events: list[dict[str, Any]] = []
        json.loads(self._stream.readline())
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: Any) -> Any:
        """Its answer; GuestError when it is refused."""
        self._stream.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self._stream.flush()
        while True:
            message = self._next()
            if "event" not in message:
                break
        if "error" in message:
            raise GuestError(f"{name}: {message['error']['desc']}")
        return message["return"]

    def wait_event(self, name: str) -> dict[str, Any]:
        """The next event of that name, one that came meanwhile included."""
        for event in self.events:
            if event["event"] == name:
                self.events.remove(event)
                return event
        while True:
            message = self._next()
            if message.get("event") == name:
                self.events.remove(message)
                return message

    def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._stream.readline())
        if "event" in message:
            self.events.append(message)
        return message

    def close(self) -> None:
        """Hangs up."""
        self._stream.close()
        self._connection.close()


def vhost_user_disk(
    socket_path: str, name: str = "disk", *, queues: int = 2, reconnect: str = "reconnect=1"
) -> list[str]:
    """The arguments for a disk that comes back after its server was killed. From QEMU 9.2 on
    `reconnect` is spelled reconnect-ms=1000."""
    return [
        "-chardev", f"socket,id={name},path={socket_path},{reconnect}",
        "-device", f"vhost-user-blk-pci,chardev={name},num-queues={queues},id={name}-device",
    ]  # fmt: skip


def vfio_user_disk(socket_path: str, name: str = "disk", **more: Any) -> list[str]:
    """The arguments for an NVMe controller that this project emulates."""
    device = {
        "driver": "vfio-user-pci",
        "socket": {"type": "unix", "path": socket_path},
        "x-msg-timeout": 60_000,
        "id": f"{name}-device",
        **more,
    }
    return ["-device", json.dumps(device)]


def tools_disk(tools: Path) -> list[str]:
    """The arguments for a disk of QEMU's own with more programs, the last of the virtio disks."""
    drive = f"if=none,id=tools,format=raw,readonly=on,file={tools}"
    return ["-drive", drive, "-device", "virtio-blk-pci,drive=tools"]


def verified_work(disk: str, tools: str) -> str:
    """The command that has fio write all of 32 MiB of a disk in random order and sizes, several
    requests at once, and compare each with what it wrote: at once, and all of it in the end."""
    job = (
        f"--name=verify --filename={disk} --size=32m --rw=randwrite --bsrange=4k-128k"
        " --ioengine=libaio --iodepth=16 --direct=1 --fsync=64 --verify=crc32c --verify_fatal=1"
        " --verify_backlog=64 --randrepeat=0 --output-format=terse"
    )
    return f"mkdir -p /tools && mount -o ro {tools} /tools && /tools/run fio {job} > /tmp/fio"


@contextlib.contextmanager
def booted(*args: Any, **kwargs: Any) -> Iterator[Guest]:
    """A guest that takes commands; gone afterwards."""
    guest = Guest(*args, **kwargs)
    try:
        guest.wait_ready()
        yield guest
    finally:
        guest.close()


def speaks_vfio_user(program: str) -> bool:
    """Whether a QEMU has the device; versions do not tell."""
    if shutil.which(program) is None:
        return False
    words = [program, "-device", "help"]
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    return '"vfio-user-pci"' in told.stdout


def missing() -> str:
    """Why there can be no guest here, or nothing."""
    if shutil.which(QEMU) is None:
        return f"{QEMU} is not installed (Debian: qemu-system-x86)"
    return ""
