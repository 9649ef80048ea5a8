"""Asks a daemon how it is: `python -m stairlib.rpc.health_check ADDR`, for container health checks.

Prints one line; exit status 0 only for SERVING. Imports little: a container runs it every few
seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

import grpc
from grpc_health.v1 import health_pb2

from stairlib.model.errors import StairwellError
from stairlib.rpc.errors import translated
from stairlib.runtime.addresses import parse_address

_OPTIONS = (("grpc.enable_http_proxy", 0),)


async def check(address: str, service: str = "", seconds: float = 3.0) -> str:
    """The status of `service` ("" for the whole daemon) by name, as "SERVING".

    Raises UnavailableError when nobody answers, NotFoundError for a service it does not have.
    """
    target = str(parse_address(address))
    async with grpc.aio.insecure_channel(target, options=_OPTIONS) as channel:
        ask = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        with translated(f"the daemon at {target}"):
            answer = await ask(health_pb2.HealthCheckRequest(service=service), timeout=seconds)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def main(arguments: list[str] | None = None) -> int:
    """Runs the check; returns the exit status."""
    parser = argparse.ArgumentParser(prog="health_check", description=__doc__)
    parser.add_argument("address", help='"host:port" or "unix:/path"')
    parser.add_argument("--service", default="", help="a full service name; default: the daemon")
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds (default: 3)")
    options = parser.parse_args(arguments)
    try:
        status = asyncio.run(check(options.address, options.service, options.timeout))
    except StairwellError as error:
        print(error.message, file=sys.stderr)
        return 1
    print(status)
    return 0 if status == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main())
