"""Makes what a test guest boots: a Linux kernel and a small initramfs, from Debian's packages.

    python scripts/guest_image.py DIRECTORY     leaves vmlinuz and initrd there, and says so

Packages are fetched with apt into the directory and unpacked there; nothing is installed and no
root is needed. What is there already is not made again. The guest's first program reads commands
from its console, one a line, and runs them one after another.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
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
# What the programs are linked with beside the C library; this machine may not have them.
LIBRARIES = (
    "libext2fs2", "libcom-err2", "libss2", "libblkid1", "libuuid1", "libmount1", "libsqlite3-0",
    "libreadline8", "libtinfo6", "zlib1g", "libnvme1", "libjson-c5", "libacl1", "libselinux1",
    "libpcre2-8-0", "libgmp10", "libssl3", "libdbus-1-3",
)  # fmt: skip
# In the order they depend on each other.
MODULES = (
    "virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
    "virtio_blk",
)  # fmt: skip
# The shell is no busybox: that takes its own mke2fs for any other.
INIT = """#!/bin/dash
/bin/busybox --install -s /bin
export PATH=/sbin:/usr/sbin:/usr/bin:/bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
for module in MODULES; do insmod /modules/$module.ko; done
mkdir -p /mnt /tmp
stty -echo < /dev/ttyS0
echo "guest: ready" > /dev/ttyS0
while read -r line; do eval "$line"; done < /dev/ttyS0 > /dev/ttyS0 2>&1
"""


def main() -> int:
    """Nothing is printed but what is done; 1 with a sentence when it cannot be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory.resolve()
    try:
        make(directory)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"guest_image: {error}", file=sys.stderr)
        return 1
    print(f"{directory}/vmlinuz {directory}/initrd")
    return 0


def make(directory: Path) -> None:
    """Makes what is missing; what was made by another version of this script is made anew."""
    stamp = directory / "made-by"
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == version:
        return
    directory.mkdir(parents=True, exist_ok=True)
    packages = directory / "packages"
    packages.mkdir(exist_ok=True)
    kernel = _fetch(packages, _kernel_package())
    root = directory / "unpacked"
    shutil.rmtree(root, ignore_errors=True)
    for name in (kernel, *(_fetch(packages, package) for package in (*PROGRAMS, *LIBRARIES))):
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


if __name__ == "__main__":
    sys.exit(main())
