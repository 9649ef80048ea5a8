"""Makes what a test guest boots: a Linux kernel and a small initramfs, from Debian's packages.

    python scripts/guest_image.py DIRECTORY     leaves vmlinuz and initrd there, and says so
    ... --disk FILE [--block-size 4096]         and a bootable disk of the same: GPT, a boot loader
                                                for UEFI, the kernel, and a root file system
    ... --virtio                                that disk for a virtio-blk device: its driver is no
                                                part of the kernel, so an initramfs loads it
    ... --tools FILE                            and an ext4 with this machine's fio: in a guest,
                                                mount it read-only at /tools; /tools/run fio ...

Packages are fetched with apt into the directory and unpacked there; nothing is installed and no
root is needed. What is there already is not made again. The guest's first program reads commands
from its console, one a line, and runs them one after another.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import uuid
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

KERNEL = "linux-image-cloud-amd64"
# Their programs go into the guest with the libraries that they name.
PROGRAMS = {
    "busybox-static": ["bin/busybox"],
    "dash": ["bin/dash"],
    "e2fsprogs": ["sbin/mke2fs", "sbin/e2fsck"],
    "coreutils": ["bin/dd", "usr/bin/sha256sum", "usr/bin/truncate"],
    "util-linux": ["sbin/blkdiscard", "sbin/fstrim"],
    "sqlite3": ["usr/bin/sqlite3"],
    "nvme-cli": ["usr/sbin/nvme"],
}
# What makes a disk of it, on this machine.
DISK_PACKAGES = ("systemd-boot-efi", "mtools", "dosfstools")

# What the programs are linked with beside the C library; this machine may not have them.
LIBRARIES = (
    "libext2fs2", "libcom-err2", "libss2", "libblkid1", "libuuid1", "libmount1", "libsqlite3-0",
    "libreadline8", "libtinfo6", "zlib1g", "libnvme1", "libjson-c5", "libacl1", "libselinux1",
    "libpcre2-8-0", "libgmp10", "libssl3", "libdbus-1-3",
)  # fmt: skip
# In the order they depend on each other.
MODULES = (
    "virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
    "virtio_blk", "pvpanic", "pvpanic-mmio", "button", "evdev",
)  # fmt: skip
# The shell is no busybox: that takes its own mke2fs for any other.
INIT = """#!/bin/dash
/bin/busybox --install -s /bin
export PATH=/sbin:/usr/sbin:/usr/bin:/bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
if test -z "$SWITCHED"; then
  for module in MODULES; do insmod /modules/$module.ko; done
  # Of a disk whose driver was missing until now.
  for word in $(cat /proc/cmdline); do
    case $word in switch_root=*)
      mkdir -p /real
      until mount -t ext4 ${word#switch_root=} /real 2> /dev/null; do usleep 50000; done
      umount /proc /sys /dev
      SWITCHED=yes exec switch_root /real /init
    esac
  done
fi
mkdir -p /mnt /tmp
mount -t tmpfs none /tmp
stty -echo < /dev/ttyS0
# The power button; the console's shell goes on meanwhile.
for each in /dev/input/event*; do
  { dd if=$each bs=24 count=1 > /dev/null 2>&1 && sync && poweroff -f; } &
done
echo "guest: ready" > /dev/ttyS0
while read -r line; do eval "$line"; done < /dev/ttyS0 > /dev/ttyS0 2>&1
"""


def main() -> int:
    """Nothing is printed but what is done; 1 with a sentence when it cannot be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--disk", type=Path)
    parser.add_argument("--block-size", type=int, default=512, choices=(512, 4096))
    parser.add_argument("--virtio", action="store_true")
    parser.add_argument("--tools", type=Path)
    arguments = parser.parse_args()
    directory = arguments.directory.resolve()
    try:
        with _alone(directory):
            make(directory)
            if arguments.tools:
                make_tools(directory, arguments.tools)
        if arguments.disk:
            make_disk(directory, arguments.disk, arguments.block_size, virtio=arguments.virtio)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"guest_image: {error}", file=sys.stderr)
        return 1
    print(f"{directory}/vmlinuz {directory}/initrd")
    return 0


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Who comes meanwhile waits, and finds it made."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make(directory: Path) -> None:
    """Makes what is missing; what was made by another version of this script is made anew."""
    stamp = directory / "made-by"
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == version:
        return
    packages = directory / "packages"
    packages.mkdir(exist_ok=True)
    kernel = _fetch(packages, _kernel_package())
    root = directory / "unpacked"
    shutil.rmtree(root, ignore_errors=True)
    wanted = (*PROGRAMS, *LIBRARIES, *DISK_PACKAGES)
    for name in (kernel, *(_fetch(packages, package) for package in wanted)):
        _run("dpkg-deb", "-x", name, root)
    (image,) = (root / "boot").glob("vmlinuz-*")
    shutil.copyfile(image, directory / "vmlinuz")
    tree = _tree(root, directory / "tree", image.name.removeprefix("vmlinuz-"))
    _pack(tree, root / "bin/busybox", directory / "initrd")
    stamp.write_text(version)


def _run(*command: object, **options: object) -> str:
    done = subprocess.run(
        [str(word) for word in command], check=True, text=True, stdout=subprocess.PIPE, **options
    )  # type: ignore[call-overload]
    return str(done.stdout)


def _kernel_package() -> str:
    """The package that the kernel's package of no version depends on."""
    for line in _run("apt-cache", "depends", KERNEL).splitlines():
        label, _colon, word = line.strip().partition("Depends: ")
        if not label and word.startswith("linux-image-"):
            return word
    raise FileNotFoundError(f"apt knows no {KERNEL}: run apt-get update first")


def _fetch(packages: Path, name: str) -> Path:
    """The package's file, downloaded unless it is there."""
    pattern = f"{name}_*.deb"
    if not list(packages.glob(pattern)):
        _run("apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", name, cwd=packages)
    return max(packages.glob(pattern), key=lambda path: path.stat().st_mtime)


def _tree(root: Path, tree: Path, release: str) -> Path:
    """The guest's files."""
    shutil.rmtree(tree, ignore_errors=True)
    for folder in ("bin", "sbin", "usr/bin", "usr/sbin", "proc", "sys", "dev", "modules"):
        (tree / folder).mkdir(parents=True)
    for programs in PROGRAMS.values():
        for program in programs:
            shutil.copy2(root / program, tree / program)
            _copy_libraries(root, root / program, tree)
    modules = root / "lib/modules" / release
    for module in MODULES:
        (found,) = modules.rglob(f"{module}.ko")
        shutil.copyfile(found, tree / "modules" / found.name)
    init = tree / "init"
    init.write_text(INIT.replace("MODULES", " ".join(MODULES)))
    init.chmod(0o755)
    return tree


def _copy_libraries(root: Path, program: Path, tree: Path) -> None:
    """The libraries a program needs, from their packages; the C library is this machine's."""
    places = ":".join(f"{root}/{place}/x86_64-linux-gnu" for place in ("usr/lib", "lib"))
    done = subprocess.run(
        ["ldd", str(program)], check=False, text=True, capture_output=True,
        env={**os.environ, "LD_LIBRARY_PATH": places},
    )  # fmt: skip
    for line in done.stdout.splitlines():
        for word in line.split():
            if word.startswith("/"):
                target = tree / word.removeprefix(str(root)).lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(word, target)
                target.chmod(0o755)
        if "not found" in line:
            raise FileNotFoundError(f"{program.name} needs a library: {line.strip()}")


def _pack(tree: Path, busybox: Path, initrd: Path) -> None:
    names = "\n".join(sorted(str(path.relative_to(tree)) for path in tree.rglob("*")))
    with initrd.open("wb") as out:
        archive = subprocess.Popen(
            [str(busybox), "cpio", "-o", "-H", "newc"],
            cwd=tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        compress = subprocess.Popen(["gzip", "-1"], stdin=archive.stdout, stdout=out)
        assert archive.stdin is not None
        archive.stdin.write(names.encode())
        archive.stdin.close()
        if archive.wait() or compress.wait():
            raise OSError("the initramfs cannot be packed")


LOADER = """timeout 0
default guest
"""
ENTRY = """title guest
linux /vmlinuz
options console=ttyS0 quiet panic=-1 no_timer_check rw rootwait root=PARTUUID={root} init=/init
"""
# The second partition of the first virtio disk.
VIRTIO_ENTRY = """title guest
linux /vmlinuz
initrd /initrd
options console=ttyS0 quiet panic=-1 no_timer_check switch_root=/dev/vda2
"""
# Types of partitions.
ESP_TYPE = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
LINUX_TYPE = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
MIB = 1 << 20
ESP_MIB = 40
ROOT_MIB = 64


def make_disk(directory: Path, disk: Path, block_size: int, *, virtio: bool = False) -> None:
    """A raw disk for UEFI: 1 MiB of table, the boot loader's partition, the root file system, and
    1 MiB for the table's second copy. What `make` made has to be there."""
    root = directory / "unpacked"
    places = ":".join(f"{root}/{place}/x86_64-linux-gnu" for place in ("usr/lib", "lib"))
    env = {**os.environ, "LD_LIBRARY_PATH": places, "MTOOLS_SKIP_CHECK": "1"}
    esp_id, root_id = uuid.uuid4(), uuid.uuid4()
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        esp, files = Path(scratch) / "esp", Path(scratch) / "root"
        _sized(esp, ESP_MIB)
        # FAT32 has too few clusters for so small a partition with large blocks.
        kind = ["-F", "32"] if block_size == 512 else []
        _run(root / "sbin/mkfs.vfat", *kind, "-S", block_size, esp)
        entry = VIRTIO_ENTRY if virtio else ENTRY.format(root=root_id)
        _fill_boot(root, directory, Path(scratch), esp, entry, env)
        _sized(files, ROOT_MIB)
        _make_ext4(directory, directory / "tree", files)
        parts = [(ESP_TYPE, esp_id, ESP_MIB, "boot"), (LINUX_TYPE, root_id, ROOT_MIB, "root")]
        head, tail = partition_tables(parts, block_size)
        with disk.open("wb") as out:
            out.write(head)
            out.write(esp.read_bytes())
            out.write(files.read_bytes())
            out.write(tail)


def _sized(path: Path, size_mib: int) -> None:
    with path.open("wb") as out:
        out.truncate(size_mib * MIB)


def _fill_boot(
    root: Path, directory: Path, scratch: Path, esp: Path, entry: str, env: dict[str, str]
) -> None:
    """The boot loader, its configuration and the kernel; and the initramfs, if that is used."""
    (scratch / "loader.conf").write_text(LOADER)
    (scratch / "guest.conf").write_text(entry)
    files = [directory / "initrd"] if "initrd " in entry else []
    mtools = root / "usr/bin/mtools"
    for folder in ("EFI", "EFI/BOOT", "loader", "loader/entries"):
        _run(mtools, "-c", "mmd", "-i", esp, f"::/{folder}", env=env)
    loader = root / "usr/lib/systemd/boot/efi/systemd-bootx64.efi"
    for source, target in (
        (loader, "EFI/BOOT/BOOTX64.EFI"),
        (directory / "vmlinuz", "vmlinuz"),
        (scratch / "loader.conf", "loader/loader.conf"),
        (scratch / "guest.conf", "loader/entries/guest.conf"),
        *((file, file.name) for file in files),
    ):
        _run(mtools, "-c", "mcopy", "-i", esp, source, f"::/{target}", env=env)


# A guest's own C library is another one than these programs want.
RUN = """#!/bin/sh
program=$1
shift
exec /tools/lib/ld-linux-x86-64.so.2 --library-path /tools/lib /tools/bin/$program "$@"
"""
# What a guest needs sometimes, and has more libraries than all else: too large for its memory.
TOOLS = ("fio",)


def make_tools(directory: Path, disk: Path) -> None:
    """This machine's programs with their libraries as a file system, left as it is when it is there
    and newer than they are. FileNotFoundError where one is not installed."""
    programs = []
    for name in TOOLS:
        found = shutil.which(name)
        if found is None:
            raise FileNotFoundError(f"{name} is not installed (Debian: {name})")
        programs.append(Path(found))
    made = disk.stat().st_mtime if disk.is_file() else 0.0
    if all(program.stat().st_ctime < made for program in (*programs, Path(__file__))):
        return
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        tree = Path(scratch) / "tree"
        for folder in ("bin", "lib"):
            (tree / folder).mkdir(parents=True)
        for program in programs:
            shutil.copy2(program, tree / "bin")
            for line in _run("ldd", program).splitlines():
                for word in line.split():
                    if word.startswith("/"):
                        shutil.copy2(word, tree / "lib")
        (tree / "run").write_text(RUN)
        (tree / "run").chmod(0o755)
        used = sum(path.stat().st_size for path in tree.rglob("*"))
        files = Path(scratch) / "files"
        _sized(files, used // MIB + 32)
        _make_ext4(directory, tree, files)
        files.replace(disk)


def _make_ext4(directory: Path, tree: Path, files: Path) -> None:
    root = directory / "unpacked"
    places = ":".join(f"{root}/{place}/x86_64-linux-gnu" for place in ("usr/lib", "lib"))
    env = {**os.environ, "LD_LIBRARY_PATH": places}
    _run(root / "sbin/mke2fs", "-q", "-t", "ext4", "-b", 4096, "-d", tree, files, env=env)


def partition_tables(
    parts: Sequence[tuple[uuid.UUID, uuid.UUID, int, str]], block_size: int
) -> tuple[bytes, bytes]:
    """The first and the last MiB of a disk with partitions (type, id, MiB, name) one behind
    another. Source: UEFI specification, chapter 5."""
    per_mib = MIB // block_size
    blocks = (2 + sum(part[2] for part in parts)) * per_mib
    table_blocks = 128 * 128 // block_size
    entries, first = b"", per_mib
    for kind, identity, size_mib, name in parts:
        last = first + size_mib * per_mib - 1
        text = name.encode("utf-16-le").ljust(72, b"\0")
        entries += kind.bytes_le + identity.bytes_le + struct.pack("<QQQ", first, last, 0) + text
        first = last + 1
    entries = entries.ljust(128 * 128, b"\0")
    disk_id = uuid.uuid4().bytes_le

    def header(here: int, other: int, table: int) -> bytes:
        usable = (2 + table_blocks, blocks - 2 - table_blocks)
        checksum = zlib.crc32(entries)
        start = struct.pack("<8sIIIIQQQQ", b"EFI PART", 0x10000, 92, 0, 0, here, other, *usable)
        text = start + disk_id + struct.pack("<QIII", table, 128, 128, checksum)
        sum_of_it = struct.pack("<I", zlib.crc32(text))
        return (text[:16] + sum_of_it + text[20:]).ljust(block_size, b"\0")

    protective = bytes(446) + struct.pack(
        "<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, min(blocks - 1, 0xFFFFFFFF)
    )
    mbr = protective.ljust(510, b"\0") + b"\x55\xaa"
    head = mbr.ljust(block_size, b"\0") + header(1, blocks - 1, 2) + entries
    tail = entries + header(blocks - 1, 1, blocks - 1 - table_blocks)
    return head.ljust(MIB, b"\0"), tail.rjust(MIB, b"\0")


if __name__ == "__main__":
    sys.exit(main())
