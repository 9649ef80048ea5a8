"""What stands before every request of the console: where it comes from, how large it is, and what
the browser may do with the answer.

A browser sends requests for pages that are not ours. They are told apart three ways: the Host must
be a name that no stranger's page can have, a call of the API needs a header that other origins may
not send unasked, and an Origin or Sec-Fetch-Site, where the browser says one, must be ours. Nothing
is kept in cookies, so that a request carries no rights that its script did not put there.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controlplane.console.failures import failure
from stairlib.model.errors import LimitError, RefusedError, StairwellError

# A construction request may name many regions; nothing else that is sent here is large.
REQUEST_BYTES_MAX: Final = 1 << 20
HEADER: Final = "x-stairwell-console"
API: Final = "/api/"
SECURITY_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


def host_of(header: str) -> str:
    """The host of a Host header, without its port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


def is_own(host: str, names: Iterable[str]) -> bool:
    """Whether a stranger's page cannot be reached under this host: an address, or one of `names`.
    A name that anybody may point at our address is none."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host in names
    return True


class Protection:
    """`names` are the hosts it may be reached by beside addresses; empty: any, where TLS has a
    certificate for each of them; `scheme` is that of its own origin."""

    def __init__(self, app: ASGIApp, names: frozenset[str], scheme: str) -> None:
        self._app = app
        self._names = names
        self._scheme = scheme

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        api = scope["path"].startswith(API)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY_HEADERS)
                headers["cache-control"] = "no-store" if api else "no-cache"
            await send(message)

        headers = Headers(scope=scope)
        try:
            self._require_ours(headers, api=api)
            limited = _limited(headers, receive)
        except StairwellError as error:
            from starlette.responses import JSONResponse

            status, body = failure(error)
            await JSONResponse(body, status)(scope, receive, guarded)
            return
        await self._app(scope, limited, guarded)

    def _require_ours(self, headers: Headers, *, api: bool) -> None:
        """RefusedError for a request that another site may have caused."""
        host = headers.get("host", "")
        if self._names and not is_own(host_of(host), self._names):
            raise RefusedError(
                "the console answers to addresses and its own name only", reason="FOREIGN_HOST"
            )
        if not api:
            return
        origin = headers.get("origin")
        if origin is not None and origin != f"{self._scheme}://{host}":
            raise RefusedError("another site's page asked for this", reason="FOREIGN_ORIGIN")
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise RefusedError("another site's page asked for this", reason="FOREIGN_ORIGIN")
        if headers.get(HEADER) != "1":
            raise RefusedError(
                f"calls of the console's API need the header {HEADER}: 1", reason="HEADER_NEEDED"
            )


def too_large() -> LimitError:
    """What is said of a request above the limit."""
    return LimitError(
        f"a request of the console has at most {REQUEST_BYTES_MAX} bytes", reason="TOO_LARGE"
    )


def _limited(headers: Headers, receive: Receive) -> Receive:
    """`receive` with a limit; LimitError at once where the length is said and too large."""
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > REQUEST_BYTES_MAX:
        raise too_large()
    got = 0

    async def limited() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        if got > REQUEST_BYTES_MAX:
            raise too_large()
        return message

    return limited
