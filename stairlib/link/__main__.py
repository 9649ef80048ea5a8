"""A bad network between two hosts: `python3 -m stairlib.link`, for tests and for whoever wants to
see what a slow, lossy or dead link does to a cluster.

    python3 -m stairlib.link run 0.0.0.0:8850=ds5:8850 0.0.0.0:8851=ds5:8851 --delay 20ms
    python3 -m stairlib.link set --rate 4MiB --loss 1%
    python3 -m stairlib.link set --stall
    python3 -m stairlib.link clear
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from stairlib.link import shape
from stairlib.link.control import Control, ask
from stairlib.link.proxy import BACK, THERE, Forward, Link
from stairlib.link.shape import Shape
from stairlib.model.errors import InvalidRequestError, StairwellError
from stairlib.runtime import process
from stairlib.runtime.addresses import Address, parse_address
from stairlib.runtime.process import StopSignal
from stairlib.telemetry import logs

SERVICE: Final = "link"
_READERS: Final = {
    "delay": shape.seconds,
    "jitter": shape.seconds,
    "rate": shape.bytes_per_second,
    "loss": shape.share,
}


def default_control() -> Path:
    """Where the orders go if nothing else is said: one link per user of a host."""
    folder = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return Path(folder) / f"stairwell-link-{os.getuid()}.sock"


def parser() -> argparse.ArgumentParser:
    """Every command with its flags."""
    top = argparse.ArgumentParser(
        prog="python3 -m stairlib.link", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run", help="pass connections on until SIGTERM",
        description="Passes connections on until SIGTERM. All ports share one wire. A downstairs "
        "has two: that of its gRPC server and that of its data connection, at the same numbers, "
        "and advertises the link's host.",
    )  # fmt: skip
    run.add_argument(
        "forwards", nargs="+", metavar="LISTEN=TARGET", type=_forward,
        help="as 0.0.0.0:8850=ds5:8850",
    )  # fmt: skip
    change = commands.add_parser(
        "set", help="make it worse or better",
        description="Changes what is named and leaves the rest. What is under way keeps its time.",
    )  # fmt: skip
    for command in (run, change):
        _add_shape(command)
    change.add_argument("--direction", choices=(THERE, BACK), default="", help="default: both")
    for name, text in (
        ("show", "say how it is, and what went through"),
        ("cut", "reset all connections and refuse new ones, as a host whose processes are gone"),
        ("join", "take connections again"),
        ("clear", "take everything out of the way"),
    ):
        commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    for command in commands.choices.values():
        command.add_argument(
            "--control", type=Path, default=default_control(), metavar="PATH",
            help="the socket for orders (default: %(default)s)",
        )  # fmt: skip
    return top


def _add_shape(command: argparse.ArgumentParser) -> None:
    for name, metavar, text in (
        ("delay", "TIME", "each byte is later by this, as 20ms"),
        ("jitter", "TIME", "and by up to this more, by chance"),
        ("rate", "RATE", "bytes a second of all connections together, as 4MiB or 8mbit; 0: all"),
        ("loss", "SHARE", "of the packets, as 1%%: a loss is 0.2 s or more without a byte"),
    ):
        command.add_argument(f"--{name}", type=_READERS[name], metavar=metavar, help=text)
    stall = command.add_mutually_exclusive_group()
    stall.add_argument(
        "--stall", dest="stalled", action="store_const", const=True,
        help="nothing arrives, and nobody is told: a network that is gone",
    )  # fmt: skip
    stall.add_argument(
        "--flow", dest="stalled", action="store_const", const=False, help="it does again"
    )


def _forward(text: str) -> Forward:
    listen, equals, target = text.partition("=")
    if not equals:
        raise InvalidRequestError(f"{text!r} is not LISTEN=TARGET, as 0.0.0.0:8850=ds5:8850")
    return Forward(_tcp(listen), _tcp(target))


def _tcp(text: str) -> Address:
    address = parse_address(text)
    if address.is_unix:
        raise InvalidRequestError(f"{text}: a link takes TCP addresses")
    return address


def _values(options: argparse.Namespace) -> dict[str, Any]:
    names = (*_READERS, "stalled")
    found = {name: value for name in names if (value := getattr(options, name)) is not None}
    # Said here of what the link would refuse as well.
    Shape.from_json(found)
    return found


async def _run(options: argparse.Namespace, stop: StopSignal) -> int:
    link = Link(options.forwards)
    link.set(_values(options))
    control = Control(link, options.control)
    try:
        await link.start()
        await control.start()
        print("ready", *link.addresses, flush=True)
        await stop.event.wait()
    finally:
        await control.close()
        await link.close()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the exit status."""
    try:
        options = parser().parse_args(arguments)
        if options.command == "run":
            logs.configure(SERVICE)
            return process.run(lambda stop: _run(options, stop))
        request: dict[str, Any] = {"do": options.command}
        if options.command == "set":
            request |= {"values": _values(options), "direction": options.direction}
        print(json.dumps(asyncio.run(ask(options.control, request)), indent=2))
    except StairwellError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
