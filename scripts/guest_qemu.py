"""Fetches a newer QEMU than the system's, for guests whose disks come by vfio-user.

    python scripts/guest_qemu.py DIRECTORY      leaves DIRECTORY/qemu-system-x86_64 and says so

The packages of Debian's trixie and trixie-backports are unpacked into the directory, with the
libraries they need: nothing is installed, no root is needed, and the system's own apt is left
alone. apt checks what it fetches: the lists by the archive's signature, each package by the hash in
its list. What is there already is not fetched again. Takes a minute and 430 MB.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

# The latter two hold modules that QEMU looks for in the system, which may have another QEMU's, when
# they are not beside it.
PACKAGES = ("qemu-system-x86", "qemu-system-modules-opengl", "qemu-system-modules-spice")
SUITES = ("trixie", "trixie-backports")
MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PROGRAM = "qemu-system-x86_64"
# The unpacked program finds neither its libraries nor its firmware by itself.
LAUNCHER = """#!/bin/sh
# Runs the QEMU that is unpacked here, with the libraries and modules beside it.
root=$(dirname "$(readlink -f "$0")")/root
export QEMU_MODULE_DIR="$root/{libraries}/qemu"
exec "$root/{libraries}/ld-linux-x86-64.so.2" --library-path "$root/{libraries}" \\
  "$root/usr/bin/{program}" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
"""
LIBRARIES = "usr/lib/x86_64-linux-gnu"


def main() -> int:
    """Nothing is printed but what is done; 1 with a sentence when it cannot be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--mirror", default=MIRROR, help="another mirror of the Debian archive")
    arguments = parser.parse_args()
    try:
        directory = arguments.directory.resolve()
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "lock").open("w") as lock:
            # Who comes meanwhile waits, and finds it made.
            fcntl.flock(lock, fcntl.LOCK_EX)
            print(make(directory, arguments.mirror))
    except subprocess.CalledProcessError as error:
        told = (error.stderr or "").strip().splitlines()
        print(f"guest_qemu: {told[-1] if told else error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"guest_qemu: {error}", file=sys.stderr)
        return 1
    return 0


def make(directory: Path, mirror: str) -> Path:
    """The launcher; fetched and unpacked unless it was by this version of the script."""
    launcher = directory / PROGRAM
    stamp = directory / "made-by"
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == version and launcher.is_file():
        return launcher
    if not KEYRING.is_file():
        raise FileNotFoundError(f"{KEYRING} is not there (Debian: debian-archive-keyring)")
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise FileNotFoundError(f"{tool} is not there: this needs a Debian, or one like it")
    stamp.unlink(missing_ok=True)
    apt = _private_apt(directory / "apt", mirror)
    _run(*apt, "update")
    options = ("-t", SUITES[-1], "--download-only", "--no-install-recommends", "--yes")
    _run(*apt, "install", *options, *(f"{package}/{SUITES[-1]}" for package in PACKAGES))
    root = directory / "root"
    shutil.rmtree(root, ignore_errors=True)
    # What is there is tied together by one path; trixie's packages expect that of the system.
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in sorted((directory / "apt/cache/archives").glob("*.deb")):
        # By tar, which keeps those links where dpkg-deb would trip over them.
        unpack = (
            f'dpkg-deb --fsys-tarfile "{package}" | tar -x --keep-directory-symlink -C "{root}"'
        )
        _run("sh", "-c", unpack)
    shutil.rmtree(directory / "apt")
    launcher.write_text(LAUNCHER.format(libraries=LIBRARIES, program=PROGRAM))
    launcher.chmod(0o755)
    _run(launcher, "-device", "help")
    stamp.write_text(version)
    return launcher


def _private_apt(state: Path, mirror: str) -> list[str]:
    """An apt-get that knows nothing of this system but its keys."""
    for folder in ("lists/partial", "cache/archives/partial", "etc"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    (state / "status").write_text("")
    lines = [f"deb [signed-by={KEYRING}] {mirror} {suite} main" for suite in SUITES]
    (state / "sources.list").write_text("\n".join(lines) + "\n")
    settings = {
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::Etc::trustedparts": state / "etc",
        "APT::Sandbox::User": "",
        "APT::Architecture": "amd64",
        "APT::Get::List-Cleanup": "false",
        "Acquire::Languages": "none",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    return ["apt-get", "-qq", *options]


def _run(*command: object) -> None:
    # Nobody is asked anything.
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    words = [str(word) for word in command]
    subprocess.run(
        words, check=True, text=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


if __name__ == "__main__":
    sys.exit(main())
