"""The `downstaird` command: makes, serves and checks regions."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from downstaird.config import (
    CloneOptions,
    CreateOptions,
    RunOptions,
    add_cipher,
    checked_cipher,
    checked_geometry,
    checked_uuid,
    wrong,
)
from downstaird.core.clone_plan import Expected
from downstaird.faults import FaultPlan
from stairlib.model.errors import StairwellError
from stairlib.runtime.addresses import MAX_PORT, Address, parse_address

if TYPE_CHECKING:
    from stairlib.rpc.tls import TlsFiles

_GUIDE = """\
A downstairs keeps one of the three copies of a region: a directory of block data, served to one
upstairs at a time. A typical first session:

  downstaird create -d /var/lib/stairwell/r0 -u $(uuidgen) \\
      --block-size 4096 --extent-size 16384 --extent-count 128
  downstaird run -d /var/lib/stairwell/r0 -p 8810

Then name the address as one of the three targets of a volume construction request, or look at it
by hand: grpcurl -plaintext 127.0.0.1:8810 stairwell.downstairs.v1.RegionService/GetRegion
"""
_TLS_GUIDE = """\
With these files the daemon speaks TLS and nothing else, over gRPC and on the data connection. It
takes clients whose certificates are signed by the root certificate: volumes, whose construction
requests name three such files too (cert_pem, key_pem, root_cert_pem), and other downstairs. When it
is repaired it asks those itself, with this certificate. By hand:

  grpcurl -cacert ROOT -cert CERT -key KEY -servername downstairs0 127.0.0.1:8810 \\
      stairwell.downstairs.v1.RegionService/GetRegion
"""
DEFAULT_PORT = 9000
DEFAULT_BLOCK_SIZE = 512
DEFAULT_EXTENT_SIZE = 100
DEFAULT_EXTENT_COUNT = 15


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. 0 when it did what was asked, 1 with a sentence on stderr when not."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return _dispatch(options)
    except StairwellError as error:
        print(f"downstaird: {error.message}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; nothing may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _dispatch(options: argparse.Namespace) -> int:
    # Each command is imported when it is wanted: `run` needs gRPC, which takes its time.
    if options.command == "create":
        from downstaird.commands.create import create

        return create(_create_options(options))
    if options.command == "run":
        from downstaird.commands.run import run

        return run(_run_options(options), level=options.log_level, log_format=options.log_format)
    if options.command == "clone":
        from downstaird.commands.clone import clone

        return clone(_clone_options(options))
    if options.command == "verify":
        from downstaird.commands.verify import verify

        return verify(options.data)
    if options.command == "info":
        from downstaird.commands.info import info

        return info(options.data, output=options.output)
    if options.command == "dump":
        from downstaird.commands.dump import dump

        return dump(options.data, only_differences=options.only_show_differences)
    if options.command == "forget-key":
        from downstaird.commands.forget_key import forget_key

        return forget_key(options.data)
    from downstaird.commands.version import version

    return version()


def _create_options(options: argparse.Namespace) -> CreateOptions:
    return CreateOptions(
        directory=options.data,
        id=checked_uuid(options.uuid, "--uuid"),
        geometry=checked_geometry(options.block_size, options.extent_size, options.extent_count),
        cipher=checked_cipher(options.cipher, encrypted=options.encrypted),
    )


def _clone_options(options: argparse.Namespace) -> CloneOptions:
    return CloneOptions(
        directory=options.data,
        id=checked_uuid(options.uuid, "--uuid"),
        source=str(parse_address(options.source)),
        expected=Expected(
            options.block_size,
            options.extent_size,
            options.extent_count,
            options.encrypted or None,
        ),
        tls=_tls_files(options, server=False),
    )


def _run_options(options: argparse.Namespace) -> RunOptions:
    for port, flag in ((options.port, "--port"), (options.data_port or 0, "--data-port")):
        if not 0 <= port <= MAX_PORT:
            raise wrong(flag, f"must be from 0 to {MAX_PORT}, not {port}")
    if options.latency < 0:
        raise wrong("--latency", "must not be negative")
    return RunOptions(
        directory=options.data,
        address=Address(options.address.strip("[]"), options.port),
        data_port=options.data_port,
        advertise=options.advertise,
        read_only=options.mode == "ro",
        faults=FaultPlan(
            lossy=options.lossy,
            read_errors=options.read_errors,
            write_errors=options.write_errors,
            flush_errors=options.flush_errors,
            latency_seconds=options.latency / 1000,
        ),
        create=_create_options(options) if options.create else None,
        tls=_tls_files(options, server=True),
    )


def _tls_files(options: argparse.Namespace, *, server: bool) -> TlsFiles | None:
    """The files, if any, that will do: said before a region is made or locked for them."""
    from stairlib.rpc.tls import FLAGS, tls_files

    files = tls_files(options.cert_pem, options.key_pem, options.root_cert_pem, FLAGS)
    if files is not None:
        files.check(server=server)
    return files


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="downstaird",
        description="Keeps regions: one copy of a volume's blocks each.",
        epilog=_GUIDE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_create(commands)
    _add_clone(commands)
    _add_run(commands)
    verify = _add(
        commands,
        "verify",
        "Check every stored block of a region that is not being served against its context.",
        "Exits 1 and names the blocks when one does not match. For a region in service call\n"
        "RegionService/VerifyRegion instead.",
    )
    _add_directory(verify)
    info = _add(
        commands,
        "info",
        "Show what a region is: geometry, owner, generation, extents in need of repair.",
        "The region must not be in service; RegionService/GetRegion answers for one that is.",
    )
    _add_directory(info)
    info.add_argument(
        "--output", choices=("human", "json"), default="human", help="form of the answer"
    )
    dump = _add(
        commands,
        "dump",
        "Show generation, flush number, flags and digest of every extent, and compare regions.",
        "With -d given more than once (three copies of a volume) differing extents are marked\n"
        "and the exit status is 1 when there is one:\n\n  downstaird dump -d r0 -d r1 -d r2 -o",
    )
    dump.add_argument(
        "-d", "--data", type=Path, action="append", required=True, help="a region's directory"
    )
    dump.add_argument(
        "-o",
        "--only-show-differences",
        action="store_true",
        help="leave out extents that are the same everywhere",
    )
    _add_forget_key(commands)
    _add(
        commands,
        "version",
        "Show the versions of this program, its data protocol and its format.",
        "",
    )
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, more: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", "--data", type=Path, required=True, help="the region's directory")


def _add_definition(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("-u", "--uuid", help="the region's UUID, another one for each copy")
    parser.add_argument(
        "--block-size",
        type=int,
        default=DEFAULT_BLOCK_SIZE,
        help="bytes, a power of two from 512 to 32768 (default %(default)s)",
    )
    parser.add_argument(
        "--extent-size",
        type=int,
        default=DEFAULT_EXTENT_SIZE,
        help="blocks in one extent; at most 512 MiB of them (default %(default)s)",
    )
    parser.add_argument(
        "--extent-count",
        type=int,
        default=DEFAULT_EXTENT_COUNT,
        help="extents (default %(default)s)",
    )
    add_cipher(parser, "the blocks will be encrypted by the upstairs; the daemon never has the key")


def _add_create(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    create = _add(
        commands,
        "create",
        "Make a region in a directory, then exit.",
        "Sparse: a new region takes next to no space, whatever its size. 8 GiB of 4 KiB blocks:\n\n"
        "  downstaird create -d DIR -u UUID --block-size 4096 --extent-size 16384 \\\n"
        "      --extent-count 128",
    )
    _add_directory(create)
    _add_definition(create)


def _add_clone(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    clone = _add(
        commands,
        "clone",
        "Make a region as a copy of one that another daemon serves read-only, then exit.",
        "The copy has the data and the stamps of its source, and a UUID of its own: it can take a\n"
        "place in the source's read-only set. Interrupted, it is no region yet; the same command\n"
        "goes on, and fetches only what is missing:\n\n"
        "  downstaird run -d r0 -p 8810 --mode ro\n"
        "  downstaird clone -d r3 -u UUID --source 127.0.0.1:8810",
    )
    _add_directory(clone)
    clone.add_argument(
        "-u", "--uuid", help="the clone's UUID, another one than its source's; always needed"
    )
    clone.add_argument(
        "--source", required=True, metavar="HOST:PORT", help="a daemon that runs with --mode ro"
    )
    like = clone.add_argument_group("refuse a source that is not like this")
    like.add_argument("--block-size", type=int, help="bytes")
    like.add_argument("--extent-size", type=int, help="blocks in one extent")
    like.add_argument("--extent-count", type=int, help="extents")
    like.add_argument("--encrypted", action="store_true", help="encrypted by the upstairs")
    _add_tls_files(
        clone.add_argument_group("where the source speaks TLS (all three or none)"),
        "the certificate to show to the source",
        "what the source's certificate must be signed by",
    )


def _add_forget_key(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    forget = _add(
        commands,
        "forget-key",
        "Forget by what the key of an encrypted region's owner is recognised.",
        "An owner's first activation records it, and another key is refused from then on. If\n"
        "that was the wrong one, run this for all regions of the set, then activate with the\n"
        "right one. Blocks that were written with another key stay unreadable. The region must\n"
        "not be in service.",
    )
    _add_directory(forget)


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = _add(
        commands,
        "run",
        "Serve a region until SIGTERM or SIGINT.",
        "Prints one line that starts with `ready` on stdout once it serves; logs go to stderr.\n"
        "What was not flushed when it stops is not kept, as after a power cut.\n\n"
        "For containers, made on the first start and kept after it:\n\n"
        "  downstaird run --create -u UUID --block-size 4096 --extent-size 16384 \\\n"
        "      --extent-count 128 -d /data -p 8810 --advertise $(hostname)",
    )
    _add_directory(run)
    run.add_argument(
        "-p",
        "--port",
        type=int,
        default=DEFAULT_PORT,
        help="gRPC port, 0 for any (default %(default)s)",
    )
    run.add_argument(
        "-a", "--address", default="0.0.0.0", help="address to listen on (default %(default)s)"
    )
    run.add_argument(
        "--data-port",
        type=int,
        help="port of the data connection (default: the one after --port if it is free, else any)",
    )
    run.add_argument(
        "--advertise",
        default="",
        metavar="HOST",
        help="the host clients are told for the data connection (default: the address they reach "
        "this daemon by)",
    )
    run.add_argument(
        "--mode",
        choices=("rw", "ro"),
        default="rw",
        help="ro: any number of upstairs, nothing changes (default %(default)s)",
    )
    run.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    run.add_argument(
        "--log-format",
        choices=("auto", "json", "human"),
        default="auto",
        help="auto: human on a terminal, JSON lines otherwise",
    )
    _add_tls(run)
    _add_creation(run)
    _add_faults(run)


def _add_tls(run: argparse.ArgumentParser) -> None:
    tls = run.add_argument_group("TLS (all three or none)", _TLS_GUIDE)
    _add_tls_files(
        tls,
        "this daemon's certificate: for the name downstairs0, downstairs1 or downstairs2, which is "
        "its place in the request, or for the host that requests name",
        "what the certificates of clients, and of other downstairs, must be signed by",
    )


def _add_tls_files(group: argparse._ArgumentGroup, certificate: str, root: str) -> None:
    group.add_argument("--cert-pem", metavar="FILE", help=certificate)
    group.add_argument(
        "--key-pem", metavar="FILE", help="the private key of --cert-pem, without a passphrase"
    )
    group.add_argument("--root-cert-pem", metavar="FILE", help=root)


def _add_creation(run: argparse.ArgumentParser) -> None:
    creation = run.add_argument_group("making the region on the first start")
    creation.add_argument(
        "--create",
        "--create-if-absent",
        action="store_true",
        help="make the region if the directory holds none; a region that is there must match",
    )
    _add_definition(creation)


def _add_faults(run: argparse.ArgumentParser) -> None:
    faults = run.add_argument_group("trouble on purpose, for tests")
    faults.add_argument(
        "--lossy",
        action="store_true",
        help="hold back one request in four for 100 ms, also of volumes that do not ask for it",
    )
    for kind in ("read", "write", "flush"):
        faults.add_argument(
            f"--{kind}-errors", action="store_true", help=f"fail one {kind} in four"
        )
    faults.add_argument(
        "--latency", type=float, default=0.0, metavar="MS", help="hold back every request this long"
    )


if __name__ == "__main__":
    sys.exit(main())
