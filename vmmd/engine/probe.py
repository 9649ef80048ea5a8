"""Looks at this host's QEMU: its version, what devices it has, and whether KVM runs a guest.

That /dev/kvm opens proves nothing: there are hosts where it does and kernel code crawls, one
emulated instruction after another. So a tiny firmware is run with KVM. It enters 64-bit mode,
counts a hundred million down (0.1 s on a processor, minutes where each step is emulated), does a
locked 16-byte exchange, which such hosts die of, and leaves through a debug port.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from stairlib.model.errors import UnavailableError
from stairlib.telemetry.logs import get_logger
from vmmd.engine.core.hypervisor import (
    OLDEST,
    VFIO_USER_DEVICE,
    Accelerator,
    Hypervisor,
    is_old,
    version_of,
)

log = get_logger(__name__)

PROGRAM = "qemu-system-x86_64"
KVM = "/dev/kvm"
LOOK_SECONDS = 20.0
# The probe's loop takes 0.1 s; this allows for a busy host.
PROBE_SECONDS = 5.0
# What the probe leaves with: 0x31 written to the debug port is exit status 2 * 0x31 + 1.
PROBE_STATUS = 99

# start (F000:0000, 16 bits): zero three pages at 0x1000 and make them tables that map the first
#   2 MiB to themselves; lgdt; CR4.PAE; CR3 = 0x1000; EFER.LME; CR0 |= PG|PE; far jump
# long (64 bits): ecx = 100 000 000; 1: dec ecx; jnz 1b; lock cmpxchg16b [0x8000];
#   mov al, 0x31; out 0xf4, al; 2: hlt; jmp 2b
# then the two entries of the GDT and its descriptor.
_CODE = bytes.fromhex(
    "fafc6631c08ed88ec066bf0010000066b9000c000066f3ab66c70600100320000066c706002003300000"
    "66c7060030830000002e660f0116a00066b8200000000f22e066b8001000000f22d866b9800000c00f32"
    "660d000100000f300f20c0660d010000800f22c066ea70000f000800b900e1f505ffc975fcf0480fc70c"
    "2500800000b031e6f4f4ebfd660f1f440000000000000000000000000000009a20000f0090000f"
)
_ROM_BYTES = 64 << 10
# Where the processor starts: a far jump to F000:0000.
_RESET_VECTOR = (0xFFF0, bytes.fromhex("ea000000f0"))


def probe_rom() -> bytes:
    """The probe as a firmware image."""
    rom = bytearray(_ROM_BYTES)
    rom[: len(_CODE)] = _CODE
    at, jump = _RESET_VECTOR
    rom[at : at + len(jump)] = jump
    return bytes(rom)


def is_installed() -> bool:
    """Whether there is a QEMU on PATH."""
    return shutil.which(PROGRAM) is not None


async def look(program: str = PROGRAM) -> Hypervisor:
    """This host's QEMU. UnavailableError says what to install when there is none that will do."""
    if shutil.which(program) is None:
        raise UnavailableError(
            f'engine "qemu" needs {program}, and it is not installed: install it (Debian: '
            'qemu-system-x86, and ovmf for a bootrom), or use engine = "none"',
            reason="QEMU_MISSING",
        )
    _status, told = await _run([program, "--version"], LOOK_SECONDS)
    version = version_of(told)
    if not version or is_old(version):
        oldest = ".".join(map(str, OLDEST))
        raise UnavailableError(
            f"{program} says {told.splitlines()[0] if told else 'nothing'!r}: QEMU {oldest} or "
            "later is needed",
            reason="QEMU_TOO_OLD",
        )
    _status, devices = await _run([program, "-device", "help"], LOOK_SECONDS)
    accelerator, reason = await _accelerator(program)
    found = Hypervisor(program, version, accelerator, reason, f'"{VFIO_USER_DEVICE}"' in devices)
    log.info(
        "hypervisor found",
        version=version,
        accelerator=accelerator.value,
        why=reason,
        vfio_user=found.vfio_user,
    )
    return found


async def _accelerator(program: str) -> tuple[Accelerator, str]:
    if not os.access(KVM, os.F_OK):
        return Accelerator.TCG, f"there is no {KVM}"
    if not os.access(KVM, os.R_OK | os.W_OK):
        return Accelerator.TCG, f"{KVM} is not ours to open: add the user to the group kvm"
    runs, why = await runs_probe(program, Accelerator.KVM)
    return (Accelerator.KVM if runs else Accelerator.TCG), why


async def runs_probe(program: str, accelerator: Accelerator) -> tuple[bool, str]:
    """Whether the probe came to its end, and what was seen."""
    name = accelerator.value.upper()
    with tempfile.TemporaryDirectory(prefix="stairwell-probe-") as directory:
        rom = Path(directory) / "probe.rom"
        rom.write_bytes(probe_rom())
        cpu = "host" if accelerator is Accelerator.KVM else "max"
        status, said = await _run(
            [
                program, "-machine", "pc", "-accel", accelerator.value, "-cpu", cpu, "-m", "16M",
                "-nodefaults", "-no-user-config", "-display", "none", "-bios", str(rom),
                "-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-no-reboot",
            ],
            PROBE_SECONDS,
        )  # fmt: skip
    if status == PROBE_STATUS:
        return True, "a probe guest ran to its end"
    if status is None:
        return False, f"a probe guest did not end within {PROBE_SECONDS:g} s with {name}"
    last = said.strip().splitlines()[-1] if said.strip() else f"exit status {status}"
    return False, f"a probe guest failed with {name}: {last}"


async def _run(command: list[str], seconds: float) -> tuple[int | None, str]:
    """(exit status, what it said); None when it had to be killed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(seconds):
            said, _ = await process.communicate()
    except TimeoutError:
        return None, ""
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return process.returncode, said.decode(errors="replace")
