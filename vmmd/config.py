"""vmmd's command line and configuration file."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from stairlib.model.errors import FieldViolation, InvalidRequestError
from stairlib.model.settings import Setting, Source, flattened, setting
from stairlib.rpc.flags import TLS_VARIABLES, add_call_rate, add_tls
from stairlib.runtime.command_line import (
    TELEMETRY_VARIABLES,
    command_line_settings,
    variable_settings,
)
from vmmd.block.confinement import is_inside
from vmmd.core.server_config import FileBlockDevice, ServerConfig, parse_server_config

DEFAULT_ADDRESS = "127.0.0.1:55401"
_EXAMPLE = """\
example:
  vmmd run examples/server.toml 127.0.0.1:55401

the configuration (every key may be left out):
  bootrom = "/usr/share/OVMF/OVMF_CODE.fd"
  engine = "qemu"             # or "none": devices run, no CPU. Left out: qemu where it can boot
  file_directories = ["/var/lib/images", "/usr/share/OVMF"]   # files of requests, and those named
                              # here, are below one of these. Left out: any file on a host that only
                              # itself can reach, none for requests elsewhere

  [block_dev.ubuntu]
  type = "file"
  path = "/var/lib/images/ubuntu.raw"

  [dev.block0]
  driver = "pci-nvme"
  block_dev = "ubuntu"
  pci-path = "0.4.0"
"""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What `vmmd run` was told; `security` has the flags of `stairlib.rpc.flags`, `metrics` where
    they are read, if anywhere, `nbd_listen` where all disks are had over NBD; `settings` is what
    may be told of all that."""

    config: Path
    address: str
    log_level: str
    log_format: str
    runtime_directory: Path | None
    security: argparse.Namespace
    metrics: str = ""
    nbd_listen: str = ""
    settings: tuple[Setting, ...] = ()


def parse_arguments(argv: list[str] | None = None) -> Arguments:
    """Reads the command line; exits with usage when it is wrong."""
    words = sys.argv[1:] if argv is None else argv
    given = parser().parse_args(words)
    return Arguments(
        given.config,
        given.address,
        given.log_level,
        given.log_format,
        given.runtime_directory,
        given,
        given.metrics,
        given.nbd_listen,
        (
            *command_line_settings(parser, words, os.environ, TLS_VARIABLES),
            *variable_settings(os.environ, TELEMETRY_VARIABLES),
        ),
    )


def parser() -> argparse.ArgumentParser:
    """Every command with its flags."""
    top = argparse.ArgumentParser(
        prog="vmmd",
        description="Runs the machines of this host and the upstairs of their volumes.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="serve machines",
        description="Serves machines by gRPC. Each runs in a process of its own.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("config", type=Path, metavar="CONFIG.toml", help="the host's configuration")
    run.add_argument(
        "address",
        nargs="?",
        default=DEFAULT_ADDRESS,
        metavar="IP:PORT",
        help=f"where to listen (default {DEFAULT_ADDRESS}; port 0 takes a free one)",
    )
    run.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    run.add_argument(
        "--log-format",
        default="auto",
        choices=["auto", "text", "json"],
        help="auto is text on a terminal, JSON elsewhere",
    )
    run.add_argument(
        "--runtime-directory",
        type=Path,
        metavar="DIR",
        help="for the sockets of machines and their disks (default: a new temporary one). Give "
        "one, of at most 70 characters, where a hypervisor has to find its disks again after vmmd "
        "was restarted",
    )
    run.add_argument(
        "--metrics",
        default="",
        metavar="ADDR",
        help="serve metrics to Prometheus there, as 127.0.0.1:55481 (default: nowhere)",
    )
    run.add_argument(
        "--nbd-listen",
        default="",
        metavar="IP:PORT",
        help="serve every disk by name over NBD there, as 0.0.0.0:10809 (default: on unix sockets "
        "alone). With --tls-* by nbds:// alone and to operators alone; without, in plain text and "
        "on this host only",
    )
    add_tls(run)
    add_call_rate(run)
    return top


def load_server_config(path: Path) -> ServerConfig:
    """Reads the file; paths in it that are not absolute are taken from where the file is."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InvalidRequestError(
            f"cannot read the configuration {path}: {why}", reason="CONFIGURATION_UNREADABLE"
        ) from error
    config = parse_server_config(text, source=str(path))
    base = path.resolve().parent
    blocks = tuple(
        (name, dataclasses.replace(block, path=str(base / block.path)))
        for name, block in config.block_devices
    )
    bootrom = str(base / config.bootrom) if config.bootrom else ""
    directories = config.file_directories
    if directories is not None:
        directories = tuple(str(base / each) for each in directories)
        _check_inside(path, directories, [("bootrom", bootrom)] if bootrom else [])
        named = [(f"block_dev.{name}.path", block.path) for name, block in blocks]
        _check_inside(path, directories, named)
    return dataclasses.replace(
        config, block_devices=blocks, bootrom=bootrom, file_directories=directories
    )


def _check_inside(source: Path, directories: tuple[str, ...], named: list[tuple[str, str]]) -> None:
    outside = [
        FieldViolation(field, f"{file} must be in one of file_directories", "FILE_OUTSIDE")
        for field, file in named
        if not is_inside(file, directories)
    ]
    if outside:
        listed = "; ".join(f"{each.field}: {each.description}" for each in outside)
        raise InvalidRequestError(f"{source}: {listed}", tuple(outside), reason="FILE_OUTSIDE")


def confined(config: ServerConfig, *, reachable: bool, plain_text: bool) -> ServerConfig:
    """The rules for requests: where others reach this host (`reachable`) and no directory is named,
    none may be used."""
    directories = config.file_directories
    if directories is None and reachable:
        directories = ()
    return dataclasses.replace(config, file_directories=directories, plain_text=plain_text)


def file_settings(path: Path, given: ServerConfig, used: ServerConfig) -> list[Setting]:
    """What the file at `path` said (`given`) and what came of it (`used`), by the keys of the
    file."""
    said = {
        "engine": given.engine_named,
        "bootrom": bool(given.bootrom),
        "file_directories": given.file_directories is not None,
    }
    found = [
        setting(key, getattr(used, key), Source.FILE if there else Source.DEFAULT, str(path))
        for key, there in said.items()
    ]
    tables = {
        "pci_bridge": [dataclasses.asdict(each) for each in used.bridges],
        "block_dev": {name: dataclasses.asdict(each) for name, each in used.block_devices},
        "dev": {name: dataclasses.asdict(each) for name, each in used.devices},
    }
    return found + [
        setting(name, value, Source.FILE, str(path))
        for name, value in flattened(tables)
        if value != []
    ]


def missing_media(config: ServerConfig) -> list[tuple[str, FileBlockDevice]]:
    """The block devices whose files are not there.

    With no CPU nothing could read them, so a host may be tried without them; an engine that boots
    a guest must refuse to.
    """
    return [(name, block) for name, block in config.block_devices if not Path(block.path).is_file()]
