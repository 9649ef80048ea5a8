"""What the global options say, as one value. Pure; the commands never look at the environment."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from controlplane.cli.credentials import Credentials

DEFAULT_SERVER = "127.0.0.1"
DEFAULT_PORT = 55400
# One call that only reads or records something; a daemon that needs longer is stuck.
CALL_SECONDS = 30.0


class Output(enum.StrEnum):
    """How results are printed."""

    HUMAN = "human"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Settings:
    """The global options. `timeout` is seconds for one call; None lets each command choose."""

    server: str = DEFAULT_SERVER
    port: int | None = None
    output: Output = Output.HUMAN
    timeout: float | None = None
    debug: bool = False
    credentials: Credentials = field(default_factory=Credentials)

    @property
    def address(self) -> str:
        """The control plane's address as a channel takes it."""
        return join_address(self.server, self.port)


def join_address(server: str, port: int | None) -> str:
    """`host:port` from a host and a port; an IPv6 host gets its brackets.

    A server that already carries a port keeps it unless `port` is given; `unix:/path` stays as it
    is.
    """
    if server.startswith("unix:"):
        return server
    host, own_port = _split(server)
    if ":" in host:
        host = f"[{host}]"
    return f"{host}:{port or own_port or DEFAULT_PORT}"


def _split(server: str) -> tuple[str, int | None]:
    """Host without brackets, and the port when the text carries one."""
    if server.startswith("["):
        host, _, rest = server[1:].partition("]")
        text = rest.removeprefix(":")
        return host, int(text) if text.isdecimal() else None
    host, colon, text = server.rpartition(":")
    if colon and ":" not in host and text.isdecimal():
        return host, int(text)
    return server, None
