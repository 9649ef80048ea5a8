"""The `dsc` command: starts, stops and torments downstairs on this machine."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stairlib.model.errors import StairwellError
from stairlib.rpc.flags import add_insecure
from stairlib.runtime.addresses import Address

if TYPE_CHECKING:
    from downstaird.dsc.start import CreateOptions

_GUIDE = """\
Four regions of 8 GiB on ports 8810, 8820, 8830 and 8840, until Ctrl-C:

  dsc start --create --cleanup --extent-size 16384 --extent-count 128 --block-size 4096 \\
      --region-count 4

Another time, the same regions with what is in them:

  dsc start --region-count 4

From another window, kill one and bring it back:

  dsc cmd stop -c 2
  dsc cmd state -c 2
  dsc cmd start -c 2

Exit status: 0 done, 1 could not be done (one sentence on stderr says why), 2 wrong usage.
"""
_START_GUIDE = """\
Runs one downstaird for each region and stays until Ctrl-C, SIGTERM or `dsc cmd shutdown`, then
stops them gracefully. Regions must exist unless --create is given; they say their own geometry.
A script waits for the health service on the control address: it says SERVING once all run.
What a downstairs prints is in OUTPUT_DIR/downstairs-PORT.txt.
"""
_CREATE_GUIDE = """\
Makes the regions and ends. They are sparse: a new region takes next to no space.
A later `dsc start` with the same --region-dir, --port-base and --region-count serves them.
"""
_CMD_GUIDE = """\
Orders print nothing when they are taken; questions print one value.
A stop is SIGKILL, and with restarts on the member comes back at once. Random stops need
restarts on (`dsc cmd enable-restart-all`) to be more than a slow end.
"""
DEFAULT_CONTROL = "127.0.0.1:9998"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    # Children only ever exec: gRPC's own fork handlers would do nothing but write a line for each.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args([_hyphened(argument) for argument in given])
    try:
        return _command(options) if options.command == "cmd" else _local(options)
    except StairwellError as error:
        print(f"dsc: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _hyphened(argument: str) -> str:
    """`--extent_size` is what older documents write for `--extent-size`."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _command(options: argparse.Namespace) -> int:
    from downstaird.dsc.command import COMMANDS, Arguments, run

    command = next(each for each in COMMANDS if each.name == options.name)
    arguments = Arguments(
        getattr(options, "cid", None),
        getattr(options, "seconds", None),
        getattr(options, "graceful", False),
    )
    return run(options.server, command, arguments, as_json=options.output == "json")


def _local(options: argparse.Namespace) -> int:
    from downstaird.dsc import start
    from downstaird.dsc.core.layout import plan_members
    from downstaird.launching import Launcher, find_program
    from stairlib.rpc.flags import daemon_files
    from stairlib.rpc.gate import require_private
    from stairlib.rpc.tls import FLAGS
    from stairlib.runtime import process
    from stairlib.telemetry import logs

    starting = options.command == "start"
    if starting and options.cleanup and not options.create:
        parser().error("--cleanup deletes regions, so it needs --create to make new ones")
    tls = None
    if starting:
        tls = daemon_files((options.cert_pem, options.key_pem, options.root_cert_pem), FLAGS)
    if tls is not None:
        tls.check(server=True)
    if starting and not options.insecure:
        # The control port is plain text in any case.
        require_private(options.control, "taking orders")
        if tls is None:
            require_private(str(Address(options.address.strip("[]"), 0)), "having regions listen")
    dsc = start.DscOptions(
        plans=plan_members(
            count=options.region_count,
            port_base=options.port_base,
            port_step=options.port_step,
            region_dirs=options.region_dir or [DEFAULT_REGION_DIR],
            output_dir=options.output_dir,
        ),
        launcher=Launcher(
            program=find_program(options.ds_bin),
            host=options.address.strip("[]") if starting else "127.0.0.1",
            read_only=starting and options.read_only,
            tls=tls,
            insecure=starting and options.insecure,
        ),
        create=_creation(options) if not starting or options.create else None,
        control=options.control if starting else "",
    )
    logs.configure("dsc", level="warning")
    main = start.start if starting else start.create
    return process.run(lambda stop: main(dsc, stop))


DEFAULT_REGION_DIR = "/var/tmp/dsc/region"  # noqa: S108 - where the original system keeps them
DEFAULT_OUTPUT_DIR = "/tmp/dsc"  # noqa: S108 - likewise


def _creation(options: argparse.Namespace) -> CreateOptions:
    from downstaird.config import checked_cipher, checked_geometry
    from downstaird.dsc.start import CreateOptions

    geometry = checked_geometry(options.block_size, options.extent_size, options.extent_count)
    cipher = checked_cipher(options.cipher, encrypted=options.encrypted)
    return CreateOptions(geometry, cipher, options.cleanup)


def parser() -> argparse.ArgumentParser:
    """Every command with its flags."""
    top = argparse.ArgumentParser(
        prog="dsc",
        description="Starts, stops and torments downstairs on this machine.",
        epilog=_GUIDE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    start = _add(commands, "start", "Run downstairs, and regions first if asked.", _START_GUIDE)
    start.add_argument("--create", action="store_true", help="make the regions first")
    _add_cleanup(start)
    _add_places(start)
    _add_geometry(start)
    start.add_argument(
        "--control",
        default=DEFAULT_CONTROL,
        metavar="HOST:PORT",
        help="where `dsc cmd` finds this dsc (default %(default)s)",
    )
    start.add_argument(
        "--address",
        default="127.0.0.1",
        metavar="HOST",
        help="address the downstairs listen on (default %(default)s)",
    )
    start.add_argument(
        "--read-only", action="store_true", help="serve the regions without changing them"
    )
    _add_tls(start)
    create = _add(commands, "create", "Make regions, then exit.", _CREATE_GUIDE)
    _add_cleanup(create)
    _add_places(create)
    _add_geometry(create)
    _add_cmd(commands)
    return top


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


def _add_cleanup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cleanup",
        action="store_true",
        help="delete regions that are in the way, with all that is in them",
    )


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--region-count", type=int, default=3, metavar="N", help="how many (default %(default)s)"
    )
    parser.add_argument(
        "--port-base",
        type=int,
        default=8810,
        metavar="PORT",
        help="port of the first downstairs (default %(default)s)",
    )
    parser.add_argument(
        "--port-step",
        type=int,
        default=10,
        metavar="N",
        help="from one port to the next (default %(default)s)",
    )
    parser.add_argument(
        "--region-dir",
        action="append",
        metavar="DIR",
        help="regions are in DIR/PORT; once, or once for each region "
        f"(default {DEFAULT_REGION_DIR})",
    )
    parser.add_argument(
        "--output-dir",
        default=DEFAULT_OUTPUT_DIR,
        metavar="DIR",
        help="for what the downstairs print (default %(default)s)",
    )
    parser.add_argument(
        "--ds-bin",
        metavar="PATH",
        help="the downstaird program (default: that on PATH, else the one beside this Python)",
    )


def _add_tls(start: argparse.ArgumentParser) -> None:
    group = start.add_argument_group(
        "TLS (all three or none)",
        "Given to each downstairs, see `downstaird run --help`. The one certificate is for the\n"
        "host of --address, or for all of downstairs0, downstairs1 and downstairs2.",
    )
    add_insecure(group)
    for flags, text in (
        (("--tls-cert", "--cert-pem"), "the downstairs' certificate"),
        (("--tls-key", "--key-pem"), "its private key"),
        (("--tls-ca", "--root-cert-pem"), "what clients' certificates must be signed by"),
    ):
        dest = flags[1].strip("-").replace("-", "_")
        group.add_argument(*flags, dest=dest, metavar="FILE", help=text)


def _add_geometry(parser: argparse.ArgumentParser) -> None:
    from downstaird.config import add_cipher

    group = parser.add_argument_group("new regions (must match the volume construction request)")
    group.add_argument(
        "--block-size",
        type=int,
        default=4096,
        metavar="BYTES",
        help="a power of two from 512 to 32768 (default %(default)s)",
    )
    group.add_argument(
        "--extent-size",
        type=int,
        default=100,
        metavar="BLOCKS",
        help="blocks in one extent (default %(default)s)",
    )
    group.add_argument(
        "--extent-count", type=int, default=15, metavar="N", help="extents (default %(default)s)"
    )
    add_cipher(group, "for a volume with a key in its request")


def _add_cmd(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from downstaird.dsc.command import COMMANDS

    cmd = _add(commands, "cmd", "Ask or order a running dsc.", _CMD_GUIDE)
    cmd.add_argument("--server", default=DEFAULT_CONTROL, metavar="HOST:PORT", help=_SERVER_HELP)
    cmd.add_argument("--output", choices=("human", "json"), default="human", help=_OUTPUT_HELP)
    names = cmd.add_subparsers(dest="name", required=True, metavar="NAME")
    for command in COMMANDS:
        one = names.add_parser(command.name, help=command.help, description=command.help)
        # Accepted after the name as well; SUPPRESS keeps what was given before it.
        quiet = argparse.SUPPRESS
        one.add_argument("--server", default=quiet, metavar="HOST:PORT", help=_SERVER_HELP)
        one.add_argument("--output", choices=("human", "json"), default=quiet, help=_OUTPUT_HELP)
        if command.needs == "cid":
            one.add_argument("-c", "--cid", type=_count, required=True, help="member, from 0")
        elif command.needs == "seconds":
            one.add_argument("-m", dest="seconds", type=_count, required=True, help="seconds")
        if command.name.startswith("stop"):
            text = "SIGTERM instead of SIGKILL"
            one.add_argument("--graceful", action="store_true", help=text)


_SERVER_HELP = f"control address of the dsc (default {DEFAULT_CONTROL})"
_OUTPUT_HELP = "form of the answer (default human)"


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > len("4294967295") - 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0, not {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
