"""Asks a daemon how it is: `python -m stairlib.rpc.health_check ADDR`, for container health checks.

Prints one line; exit status 0 only for SERVING. Imports little: a container runs it every few
seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2

from stairlib.model.errors import StairwellError
from stairlib.rpc.errors import translated
from stairlib.rpc.flags import DAEMON_VARIABLES
from stairlib.runtime.addresses import parse_address

if TYPE_CHECKING:
    from stairlib.rpc.tls import PeerTls, TlsFiles

_OPTIONS = (("grpc.enable_http_proxy", 0),)


async def check(
    address: str, service: str = "", seconds: float = 3.0, *,
    tls: TlsFiles | PeerTls | None = None,
) -> str:  # fmt: skip
    """The status of `service` ("" for the whole daemon) by name, as "SERVING".

    Raises UnavailableError when nobody answers, NotFoundError for a service it does not have. A
    daemon that speaks TLS is asked with `tls`: files, with which it is found out what its
    certificate is for, or all that is needed.
    """
    target = str(parse_address(address))
    async with await _channel(target, tls) as channel:
        ask = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        with translated(f"the daemon at {target}"):
            answer = await ask(health_pb2.HealthCheckRequest(service=service), timeout=seconds)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


async def _channel(target: str, tls: TlsFiles | PeerTls | None) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(target, options=_OPTIONS)
    from stairlib.rpc.channel import open_channel
    from stairlib.rpc.tls import TlsFiles, reach

    peer = await reach(target, tls) if isinstance(tls, TlsFiles) else tls
    return open_channel(target, tls=peer)


def _tls(options: argparse.Namespace) -> TlsFiles | None:
    paths = (options.cert_pem, options.key_pem, options.root_cert_pem)
    if not any(paths) and not any(os.environ.get(name) for name in DAEMON_VARIABLES):
        return None
    from stairlib.rpc.flags import daemon_files
    from stairlib.rpc.tls import FLAGS

    return daemon_files(paths, FLAGS)


def main(arguments: list[str] | None = None) -> int:
    """Runs the check; returns the exit status."""
    parser = argparse.ArgumentParser(prog="health_check", description=__doc__)
    parser.add_argument("address", help='"host:port" or "unix:/path"')
    parser.add_argument("--service", default="", help="a full service name; default: the daemon")
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds (default: 3)")
    for flag, older in (
        ("--tls-cert", "--cert-pem"), ("--tls-key", "--key-pem"), ("--tls-ca", "--root-cert-pem"),
    ):  # fmt: skip
        parser.add_argument(
            flag, older, dest=older.strip("-").replace("-", "_"), metavar="FILE",
            help="as of the daemon, if it speaks TLS; also from STAIRWELL_DAEMON_TLS_...",
        )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        tls = _tls(options)
        status = asyncio.run(check(options.address, options.service, options.timeout, tls=tls))
    except StairwellError as error:
        print(error.message, file=sys.stderr)
        return 1
    print(status)
    return 0 if status == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main())
