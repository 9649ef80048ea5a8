"""The command line of `downstaird`: commands, flags, and the help that teaches them."""

from __future__ import annotations

import argparse
from pathlib import Path

from downstaird.agent.arguments import GUIDE, TEXT, add_agent
from downstaird.config import add_cipher
from downstaird.faults import CHANCE
from downstaird.snapshot_arguments import add_snapshot
from stairlib.rpc.flags import add_call_rate, add_insecure

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
is repaired it asks those itself, with this certificate. Certificates name roles, as
stairwell://daemon/NAME among their alternative names (`stairwell pki issue`); one for downstairs0,
downstairs1 or downstairs2 is a daemon's. A file that changes is read again. Also taken from
STAIRWELL_DAEMON_TLS_CERT, _KEY and _CA. Without files, plain text is spoken on this host only,
unless --insecure is said. By hand:

  grpcurl -cacert ROOT -cert CERT -key KEY -servername downstairs0 127.0.0.1:8810 \\
      stairwell.downstairs.v1.RegionService/GetRegion
"""
DEFAULT_PORT = 9000
DEFAULT_BLOCK_SIZE = 512
DEFAULT_EXTENT_SIZE = 100
DEFAULT_EXTENT_COUNT = 15


def parser() -> argparse.ArgumentParser:
    """Every command with its flags; `command` says which one was given."""
    top = argparse.ArgumentParser(
        prog="downstaird",
        description="Keeps regions: one copy of a volume's blocks each.",
        epilog=_GUIDE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_create(commands)
    _add_clone(commands)
    _add_run(commands)
    _add_agent(commands)
    _add_looking(commands)
    _add_dump(commands)
    _add_export(commands)
    _add_import(commands)
    _add_forget_key(commands)
    add_snapshot(commands)
    _add(
        commands,
        "version",
        "Show the versions of this program, its data protocol and its format.",
        "",
    )
    return top


def _add_looking(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verify = _add(
        commands,
        "verify",
        "Check every stored block of a region that is not being served against its context.",
        "Exits 1 and names the blocks when one does not match, or waits for repair. Changes\n"
        "nothing. For a region in service call RegionService/VerifyRegion instead.\n\n"
        "  downstaird verify -d /var/lib/stairwell/r0\n"
        "  downstaird verify -d r0 --output json | jq .blocks_bad",
    )
    _add_directory(verify)
    verify.add_argument(
        "-t",
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="extents are read by so many at once (default: one for each processor)",
    )
    _add_output(verify)
    info = _add(
        commands,
        "info",
        "Show what a region is: geometry, owner, generation, extents in need of repair.",
        "The region must not be in service; RegionService/GetRegion answers for one that is.",
    )
    _add_directory(info)
    info.add_argument(
        "--since",
        type=_flush,
        metavar="GENERATION:FLUSH",
        help="also list the extents written after that flush, such as a snapshot's",
    )
    _add_output(info)


def _flush(text: str) -> tuple[int, int]:
    """A flush as it is typed."""
    generation, colon, number = text.partition(":")
    if not (colon and generation.isdecimal() and number.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not GENERATION:FLUSH, as in 3:17")
    return int(generation), int(number)


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--output", choices=("human", "json"), default="human", help="form of the answer"
    )


def _add_dump(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    dump = _add(
        commands,
        "dump",
        "Show generation, flush number, flags and digest of every extent, and compare regions.",
        "With -d given more than once (up to three copies of a volume) what differs is marked and\n"
        "the exit status is 1 when something does. Changes nothing.\n\n"
        "  downstaird dump -d r0 -d r1 -d r2 -o       which extents differ\n"
        "  downstaird dump -d r0 -d r1 -d r2 -e 7 -o  which blocks of extent 7 do\n"
        "  downstaird dump -d r0 -d r1 -b 1792        one block of each, with its context",
    )
    dump.add_argument(
        "-d", "--data", type=Path, action="append", required=True, help="a region's directory"
    )
    what = dump.add_mutually_exclusive_group()
    what.add_argument(
        "-e",
        "--extent",
        type=int,
        metavar="N",
        help="compare the blocks of this extent: copies with the same letter are equal",
    )
    what.add_argument("-b", "--block", type=int, metavar="N", help="show this block")
    dump.add_argument(
        "-o",
        "--only-show-differences",
        action="store_true",
        help="leave out what is the same everywhere",
    )
    _add_output(dump)


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    export = _add(
        commands,
        "export",
        "Write a region's blocks to a file or a pipe.",
        "Blocks that were never written are zeros, and holes in a file. Encrypted ones stay so.\n"
        "Every block is checked against its context first. Changes nothing in the region.\n\n"
        "  downstaird export -d r0 -e disk.img\n"
        "  downstaird export -d r0 -e - | zstd > disk.zst",
    )
    _add_directory(export)
    export.add_argument(
        "-e",
        "--export-path",
        dest="to",
        required=True,
        metavar="FILE",
        help="where to, `-` for stdout; a file that is there is written over",
    )
    export.add_argument(
        "-s", "--skip", type=int, default=0, metavar="N", help="begin at this block (default 0)"
    )
    export.add_argument(
        "--count", type=int, default=0, metavar="N", help="so many blocks (default: to the end)"
    )


def _add_import(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    fill = _add(
        commands,
        "import",
        "Fill a region that belongs to no volume from a file or a pipe.",
        "The rest of the last block is zeros; blocks of zeros take no space. Durable when it\n"
        "returns. The region can then be served with `run --mode ro`, as a parent of volumes or a\n"
        "source of clones. For one that gets the size it needs see `create --import-path`.\n\n"
        "  downstaird import -d r0 -i disk.img\n"
        "  zstdcat disk.zst | downstaird import -d r0 -i -",
    )
    _add_directory(fill)
    fill.add_argument(
        "-i",
        "--import-path",
        dest="source",
        required=True,
        metavar="FILE",
        help="where from, `-` for stdin",
    )


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
        help=f"bytes, a power of two from 512 to 32768 (default {DEFAULT_BLOCK_SIZE})",
    )
    parser.add_argument(
        "--extent-size",
        type=int,
        help=f"blocks in one extent; at most 512 MiB of them (default {DEFAULT_EXTENT_SIZE})",
    )
    parser.add_argument(
        "--extent-count",
        type=int,
        help=f"extents (default {DEFAULT_EXTENT_COUNT})",
    )
    add_cipher(parser, "the blocks will be encrypted by the upstairs; the daemon never has the key")


def _add_create(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    create = _add(
        commands,
        "create",
        "Make a region in a directory, then exit.",
        "Sparse: a new region takes next to no space, whatever its size. 8 GiB of 4 KiB blocks:\n\n"
        "  downstaird create -d DIR -u UUID --block-size 4096 --extent-size 16384 \\\n"
        "      --extent-count 128\n\n"
        "From an image, with as many extents as that takes, or from another daemon's region:\n\n"
        "  downstaird create -d DIR -u UUID --block-size 4096 --import-path disk.img\n"
        "  downstaird create -d DIR -u UUID --clone-source 127.0.0.1:8810",
    )
    _add_directory(create)
    _add_definition(create)
    origin = create.add_mutually_exclusive_group()
    origin.add_argument(
        "-i", "--import-path", metavar="FILE", help="fill it from this file, `-` for stdin"
    )
    origin.add_argument(
        "--clone-source",
        metavar="HOST:PORT",
        help="the same as `downstaird clone --source`; the geometry is the source's, and refused "
        "where flags say another one",
    )
    _add_tls_files(
        create.add_argument_group("where the clone's source speaks TLS (all three or none)"),
        "the certificate to show to the source",
        "what the source's certificate must be signed by",
    )


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
    clone.set_defaults(clone_source=None)
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
        "-a", "--address",
        help="address to listen on (default: all with TLS or --insecure, else 127.0.0.1)",
    )  # fmt: skip
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
    run.add_argument(
        "--snapshot",
        metavar="NAME",
        help="serve this snapshot of the region, read-only, beside the daemon that serves the "
        "region itself; under an id of its own (see 'downstaird snapshot list')",
    )
    run.add_argument(
        "--metrics", default="", metavar="ADDR",
        help="serve metrics to Prometheus there, as 127.0.0.1:8890 (default: nowhere)",
    )  # fmt: skip
    _add_logging(run)
    _add_tls(run)
    add_call_rate(run)
    _add_creation(run)
    _add_faults(run)


def _add_logging(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info"
    )
    command.add_argument(
        "--log-format",
        choices=("auto", "json", "human"),
        default="auto",
        help="auto: human on a terminal, JSON lines otherwise",
    )


def _add_agent(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    agent = _add(commands, "agent", TEXT, GUIDE)
    add_agent(agent)
    add_call_rate(agent)
    _add_logging(agent)
    group = agent.add_argument_group(
        "TLS (all three or none)",
        "For the agent and for each of its regions, see `downstaird run --help`.",
    )
    add_insecure(group)
    _add_tls_files(
        group,
        "the certificate of the agent and the regions",
        "what the certificates of clients, and of other downstairs, must be signed by",
    )


def _add_tls(run: argparse.ArgumentParser) -> None:
    tls = run.add_argument_group("TLS (all three or none)", _TLS_GUIDE)
    add_insecure(tls)
    _add_tls_files(
        tls,
        "this daemon's certificate: for the name downstairs0, downstairs1 or downstairs2, which is "
        "its place in the request, or for the host that requests name",
        "what the certificates of clients, and of other downstairs, must be signed by",
    )


def _add_tls_files(group: argparse._ArgumentGroup, certificate: str, root: str) -> None:
    group.add_argument(
        "--tls-cert", "--cert-pem", dest="cert_pem", metavar="FILE", help=certificate
    )
    group.add_argument(
        "--tls-key", "--key-pem", dest="key_pem", metavar="FILE",
        help="the private key of that certificate, without a passphrase",
    )  # fmt: skip
    group.add_argument(
        "--tls-ca", "--root-cert-pem", dest="root_cert_pem", metavar="FILE", help=root
    )


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
            f"--{kind}-errors",
            type=float,
            nargs="?",
            const=CHANCE,
            default=0.0,
            metavar="P",
            help=f"fail a {kind} with this probability (one in four where none is given)",
        )
    faults.add_argument(
        "--latency",
        type=float,
        default=0.0,
        metavar="MS",
        help="hold back each frame of a volume's session this long (calls by hand are not)",
    )
