"""Addresses as users write them: "host:port", "[v6]:port" and "unix:/path", in one canonical form.

Pure: nothing is resolved. Two texts that mean the same address give equal values and equal texts,
so that targets can be compared.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from stairlib.model.errors import InvalidRequestError

MAX_PORT: Final = 65_535
# sockaddr_un.sun_path holds 108 bytes with its final NUL.
MAX_UNIX_PATH_BYTES: Final = 107
_HOST_NAME: Final = re.compile(
    r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*"
)


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """A TCP address (`host` without brackets, and `port`) or a unix socket (`path` alone)."""

    host: str
    port: int
    path: str | None = None

    @property
    def is_unix(self) -> bool:
        """Whether this is a unix socket."""
        return self.path is not None

    def with_port(self, port: int) -> Address:
        """The same host with another port."""
        return Address(self.host, port)

    def __str__(self) -> str:
        """The canonical text; gRPC takes it as a target."""
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Reads one address; port 0 means "any free one" where something listens.

    Raises InvalidRequestError (reason INVALID_ADDRESS) that says what is wrong with it.
    """
    if text.startswith("unix:"):
        return _unix(text)
    host, colon, port_text = text.rpartition(":")
    if not colon or not host:
        raise _wrong(text, 'an address is "host:port", "[v6]:port" or "unix:/path"')
    # isascii too: isdigit alone takes digits of other scripts, which int() reads as well.
    if not (port_text.isascii() and port_text.isdigit()) or int(port_text[:6]) > MAX_PORT:
        raise _wrong(text, f"the port must be a number from 0 to {MAX_PORT}")
    return Address(_host(text, host), int(port_text))


def _unix(text: str) -> Address:
    path = text.removeprefix("unix:")
    if path.startswith("//"):
        path = "/" + path.lstrip("/")
    if not path or "\0" in path:
        raise _wrong(text, "a unix address names the path of its socket")
    if len(path.encode()) > MAX_UNIX_PATH_BYTES:
        raise _wrong(text, f"a socket's path may have {MAX_UNIX_PATH_BYTES} bytes")
    return Address("", 0, path)


def _host(text: str, host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            return ipaddress.IPv6Address(host[1:-1]).compressed
        except ValueError:
            raise _wrong(text, "what is in brackets must be an IPv6 address") from None
    if ":" in host:
        raise _wrong(text, "an IPv6 address is written in brackets, as [::1]:8810")
    if re.fullmatch(r"[0-9.]+", host):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise _wrong(text, f"{host} is not an IPv4 address") from None
    name = host.lower().removesuffix(".")
    if not _HOST_NAME.fullmatch(name):
        raise _wrong(text, f"{host!r} is not a host name")
    return name


def _wrong(text: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{text!r} is not an address: {why}", reason="INVALID_ADDRESS", address=text[:256]
    )
