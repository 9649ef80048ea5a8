"""The command line of `downstaird agent`, and what it asks for as checked values."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stairlib.model.errors import FieldViolation, InvalidRequestError, UnsupportedError
from stairlib.runtime.addresses import Address, parse_address

if TYPE_CHECKING:
    from downstaird.agent.start import AgentOptions
    from stairlib.model.settings import Setting
    from stairlib.rpc.tls import TlsFiles

TEXT = "Keep a host's worth of regions, each in a process of its own, as asked over gRPC."
GUIDE = """\
  downstaird agent --root /var/lib/stairwell --ports 8810-8909

  grpcurl -plaintext -d '{"id": "'$(uuidgen)'", "geometry": {"block_size": 4096,
      "extent_size": 16384, "extent_count": 128}}' 127.0.0.1:17000 \\
      stairwell.agent.v1.AgentService/CreateRegion
  grpcurl -plaintext 127.0.0.1:17000 stairwell.agent.v1.AgentService/ListRegions

What is asked for is on disk before it is answered, and is carried out whatever is restarted in
between. A region's process that dies is started again. The processes outlive the agent: the next
one with the same --root takes them over, and guests notice nothing. Under systemd that takes
KillMode=process; in a container, where they cannot outlive it, give --on-stop stop.

Regions are thin: they take space when written. --capacity bounds what they come to when full.
"""
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
DEFAULT_LISTEN = "127.0.0.1:17000"


def add_agent(agent: argparse.ArgumentParser) -> None:
    """The flags."""
    agent.add_argument(
        "--root", type=Path, required=True, metavar="DIR", help="where regions and records are kept"
    )
    agent.add_argument(
        "--ports",
        required=True,
        metavar="A-B",
        help="the ports that regions may have, both ends included; each takes two",
    )
    agent.add_argument(
        "--listen",
        default=DEFAULT_LISTEN,
        metavar="HOST:PORT",
        help="where the agent is asked; without TLS keep it private (default %(default)s)",
    )
    agent.add_argument(
        "-a",
        "--address",
        metavar="HOST",
        help="address that the regions listen on (default: all with TLS or --insecure, else "
        "127.0.0.1)",
    )
    agent.add_argument(
        "--advertise",
        default="",
        metavar="HOST",
        help="the host that answers name for the regions (default: that of --address, or this "
        "host's name)",
    )
    agent.add_argument(
        "--capacity",
        default="",
        metavar="SIZE",
        help="what the regions may come to when full, as in 500G (default: no limit)",
    )
    agent.add_argument(
        "--failure-domain",
        default="",
        metavar="NAME",
        help="what fails together with this host, as a rack; told by GetHost",
    )
    agent.add_argument(
        "--on-stop",
        choices=("leave", "stop"),
        default="leave",
        help="at SIGTERM leave the regions' processes running, or stop them (default %(default)s)",
    )
    agent.add_argument(
        "--ds-bin",
        metavar="PATH",
        help="the downstaird program (default: that on PATH, else the one beside this Python)",
    )


def agent_options(
    options: argparse.Namespace, tls: TlsFiles | None, settings: tuple[Setting, ...] = ()
) -> AgentOptions:
    """As checked values; `settings` is what may be told of them. InvalidRequestError names the
    flag."""
    from downstaird.agent.core.intent import Limits, port_range
    from downstaird.agent.host import HostOptions
    from downstaird.agent.start import AgentOptions
    from downstaird.launching import Launcher, find_program
    from stairlib.rpc.flags import call_rate
    from stairlib.rpc.gate import require_private

    if sys.platform != "linux":
        raise UnsupportedError(
            "an agent needs Linux: it finds its regions' processes by /proc and pidfds; "
            "use `downstaird run` for each region here",
            reason="NEEDS_LINUX",
        )
    everywhere = tls is not None or options.insecure
    address = options.address or ("0.0.0.0" if everywhere else "127.0.0.1")
    if not everywhere:
        require_private(str(Address(address.strip("[]"), 0)), "having regions listen")
        require_private(options.listen, "listening")
    return AgentOptions(
        host=HostOptions(
            root=options.root.absolute(),
            limits=Limits(port_range(options.ports), _size(options.capacity)),
            launcher=Launcher(
                program=find_program(options.ds_bin),
                host=address.strip("[]"),
                read_only=False,
                tls=tls,
                insecure=options.insecure,
            ),
            advertise=options.advertise.strip("[]"),
            failure_domain=options.failure_domain,
        ),
        listen=str(parse_address(options.listen)),
        stop_regions=options.on_stop == "stop",
        settings=settings,
        calls=call_rate(options),
    )


def _size(text: str) -> int:
    """Bytes, from a number with K, M, G or T behind it; 0 where none is given."""
    if not text:
        return 0
    number = text.upper().removesuffix("IB").removesuffix("B")
    unit = number[-1:] if number[-1:] in _UNITS else ""
    digits = number.removesuffix(unit)
    if not (digits.isascii() and digits.isdigit()) or not int(digits):
        rule = f"{text!r} is not a size, as in 500G or 2T"
        raise InvalidRequestError(f"--capacity {rule}", (FieldViolation("--capacity", rule),))
    return int(digits) * _UNITS[unit]
