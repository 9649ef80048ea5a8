"""The gate of a server: asks each caller who it is, whether it may, and whether it may now.

Also the rule where plain text is spoken: on loopback and unix sockets, where nobody else listens
in, and elsewhere only when the operator has said `--insecure`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import grpc

from stairlib.model.errors import InvalidRequestError, RefusedError, UnauthenticatedError
from stairlib.rpc import access
from stairlib.rpc.access import Caller
from stairlib.rpc.call_guard import CallGuard
from stairlib.rpc.tokens import TokenBook
from stairlib.runtime.addresses import parse_address
from stairlib.telemetry.logs import get_logger

_log = get_logger(__name__)

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
# What gRPC calls the parts of a certificate.
_PEM: Final = "x509_pem_cert"
_URIS: Final = "peer_uri"
_DNS: Final = "peer_dns"
_COMMON_NAME: Final = "x509_common_name"


def is_private(address: str) -> bool:
    """Whether only this host can connect to or listen in on an address: loopback, a unix socket."""
    where = parse_address(address)
    if where.is_unix or where.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(where.host).is_loopback
    except ValueError:
        return False


def require_private(address: str, what: str, *, tls: bool = True) -> None:
    """InvalidRequestError PLAIN_TEXT where plain text would go over a network; `what` is the
    beginning of the sentence, as "listening"; `tls` says whether it could be had."""
    if is_private(address):
        return
    files = (
        "give --tls-ca, --tls-cert and --tls-key (`stairwell pki init` makes the files), "
        if tls
        else ""
    )
    harm = "read and command" if tls else "read along"
    raise InvalidRequestError(
        f"{what} on {address} in plain text lets everybody on that network {harm}: {files}use a "
        "loopback address, or say --insecure where the network is private",
        reason="PLAIN_TEXT",
        address=address,
    )


class Gate:
    """Of one server. `asks` who callers are where it speaks TLS; in plain text everybody may do
    everything. `tokens` are those of people who have no certificate; `guard` refuses those who call
    too often, if there is one."""

    def __init__(
        self,
        tokens: TokenBook | None = None,
        *,
        asks: bool = True,
        guard: CallGuard | None = None,
    ) -> None:
        self._tokens = tokens
        self._asks = asks
        self._guard = guard

    def admit(self, details: grpc.HandlerCallDetails, context: _Context) -> None:
        """RefusedError or UnauthenticatedError unless the caller may call the method, CallRateError
        unless it may now."""
        if access.is_open(details.method):
            return
        if not self._asks:
            if self._guard is not None:
                self._guard.admit(access.ANYBODY, details.method, context.peer())
            return
        try:
            caller = self._caller(details, context)
        except (RefusedError, UnauthenticatedError):
            if self._guard is not None:
                self._guard.admit_address(context.peer())
            raise
        if self._guard is not None:
            self._guard.admit(caller, details.method, context.peer())
        access.require(caller, details.method)
        wanted = access.allowed(details.method)
        if access.Role.VIEWER not in wanted and access.Role.DAEMON not in caller.roles:
            # What people change leaves a trace of who did it.
            _log.info("call admitted", method=details.method, caller=caller.name)

    def _caller(self, details: grpc.HandlerCallDetails, context: _Context) -> Caller:
        found: Mapping[str, Any] = context.auth_context()
        if found.get(_PEM):
            shown = _texts(found, _COMMON_NAME)
            return access.certificate_caller(
                _texts(found, _URIS), _texts(found, _DNS), shown[0] if shown else ""
            )
        if self._tokens is None:
            raise UnauthenticatedError(
                "this port takes callers with a certificate alone", reason="CERTIFICATE_NEEDED"
            )
        return self._tokens.caller(_authorization(details))


def _authorization(details: grpc.HandlerCallDetails) -> str | None:
    values = [value for key, value in details.invocation_metadata or () if key == "authorization"]
    return str(values[-1]) if values else None


def _texts(found: Mapping[str, Any], name: str) -> list[str]:
    return [
        value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        for value in found.get(name, ())
    ]
