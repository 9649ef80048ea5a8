"""Opens channels to other daemons: keepalive, quick reconnection, deadlines, client spans.

Invariants: a unary call always has a deadline; no call is retried behind its caller's back; the
address is used as it is (no HTTP proxy); a span ends when its call ends, before the caller sees
the result. Interceptors never wait for a call's status: that would hang a call that never starts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import grpc
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from stairlib.rpc.interceptors import QUIET_PREFIXES, code_number, set_status
from stairlib.runtime import limits
from stairlib.telemetry.tracing import Tracing, traceparent

if TYPE_CHECKING:
    from stairlib.rpc.tls import PeerTls

_T = TypeVar("_T")
_Details: TypeAlias = grpc.aio.ClientCallDetails
_Continuation: TypeAlias = Callable[[_Details, Any], Awaitable[Any]]

OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    # A channel of its own connection: a channel opened after a restart starts without back-off.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000 * limits.RPC_RECONNECT_MAX_SECONDS),
    ("grpc.max_reconnect_backoff_ms", 1_000 * limits.RPC_RECONNECT_MAX_SECONDS),
    # A container that comes back has a new address behind its name.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    ("grpc.keepalive_time_ms", 1_000 * limits.RPC_KEEPALIVE_SECONDS),
    ("grpc.keepalive_timeout_ms", 1_000 * limits.RPC_KEEPALIVE_TIMEOUT_SECONDS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_send_message_length", limits.RPC_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", limits.RPC_MESSAGE_BYTES),
)


def open_channel(
    address: str, *, tracing: Tracing | None = None, tls: PeerTls | None = None
) -> grpc.aio.Channel:
    """A channel to "host:port" or "unix:/path"; connects at the first call, close it when done.

    With `tracing`, each call is a client span and carries its W3C context. With `tls`, both sides
    show certificates, and the peer's must be for its `server_name`.
    """
    interceptors: Sequence[grpc.aio.ClientInterceptor] = [_UnaryDeadline(), _StreamDeadline()]
    if tracing is not None:
        spans = _Spans(tracing, address)
        interceptors = [
            _TracedUnaryUnary(spans),
            _TracedUnaryStream(spans),
            _TracedStreamUnary(spans),
            _TracedStreamStream(spans),
            *interceptors,
        ]
    if tls is None:
        return grpc.aio.insecure_channel(address, options=OPTIONS, interceptors=interceptors)
    options = (*OPTIONS, ("grpc.ssl_target_name_override", tls.server_name))
    return grpc.aio.secure_channel(
        address, tls.credentials, options=options, interceptors=interceptors
    )


def _with(details: _Details, **changes: object) -> _Details:
    fields = {
        name: getattr(details, name)
        for name in ("method", "timeout", "metadata", "credentials", "wait_for_ready")
    }
    return grpc.aio.ClientCallDetails(**{**fields, **changes})


def _with_deadline(details: _Details) -> _Details:
    if details.timeout is not None:
        return details
    return _with(details, timeout=limits.RPC_DEFAULT_SECONDS)


class _UnaryDeadline(grpc.aio.UnaryUnaryClientInterceptor):
    """A deadline for a unary call whose caller gave none."""

    async def intercept_unary_unary(
        self, continuation: _Continuation, client_call_details: _Details, request: object
    ) -> Any:
        """Adds the default deadline."""
        return await continuation(_with_deadline(client_call_details), request)


class _StreamDeadline(grpc.aio.StreamUnaryClientInterceptor):
    """The same for a call with one answer to many messages."""

    async def intercept_stream_unary(
        self, continuation: _Continuation, client_call_details: _Details, request_iterator: object
    ) -> Any:
        """Adds the default deadline."""
        return await continuation(_with_deadline(client_call_details), request_iterator)


class _Spans:
    """Starts the span of a call and ends it from the call's done callback."""

    def __init__(self, tracing: Tracing, address: str) -> None:
        self._tracer = tracing.tracer
        host, colon, port = address.rpartition(":")
        whole = not colon or not port.isdecimal()
        self._server: dict[str, str | int] = {"server.address": address if whole else host}
        if not whole:
            self._server["server.port"] = int(port)

    async def call(self, continuation: _Continuation, details: _Details, request: object) -> Any:
        """Continues the call inside a span of its own, or plainly for health and the like."""
        method: object = details.method  # bytes in some releases, whatever its type says
        path = method.decode() if isinstance(method, bytes) else str(method)
        if path.startswith(QUIET_PREFIXES):
            return await continuation(details, request)
        service, _, name = path.lstrip("/").partition("/")
        span = self._tracer.start_span(
            f"{service}/{name}",
            kind=SpanKind.CLIENT,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": name,
                **self._server,
            },
        )
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            metadata["traceparent"] = traceparent() or ""
        try:
            call = await continuation(_with(details, metadata=metadata), request)
        except BaseException:
            set_status(span, code_number(grpc.StatusCode.CANCELLED), None)
            span.end()
            raise
        call.add_done_callback(lambda done: _end(span, done))
        return call


def _end(span: trace.Span, call: grpc.aio.Call) -> None:
    set_status(span, code_number(_finished(call.code())), _finished(call.details()))
    span.end()


def _finished(coroutine: Coroutine[Any, Any, _T]) -> _T | None:
    """The result of a coroutine that has nothing to wait for: the status of a call that is done.

    Read at once rather than in a task, so that the span is there when the caller goes on.
    """
    try:
        coroutine.send(None)
    except StopIteration as done:
        value: _T = done.value
        return value
    coroutine.close()
    return None


class _TracedUnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, spans: _Spans) -> None:
        self._spans = spans

    async def intercept_unary_unary(
        self, continuation: _Continuation, client_call_details: _Details, request: object
    ) -> Any:
        """One request, one answer."""
        return await self._spans.call(continuation, client_call_details, request)


class _TracedUnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, spans: _Spans) -> None:
        self._spans = spans

    async def intercept_unary_stream(
        self, continuation: _Continuation, client_call_details: _Details, request: object
    ) -> Any:
        """One request, many answers."""
        return await self._spans.call(continuation, client_call_details, request)


class _TracedStreamUnary(grpc.aio.StreamUnaryClientInterceptor):
    def __init__(self, spans: _Spans) -> None:
        self._spans = spans

    async def intercept_stream_unary(
        self, continuation: _Continuation, client_call_details: _Details, request_iterator: object
    ) -> Any:
        """Many requests, one answer."""
        return await self._spans.call(continuation, client_call_details, request_iterator)


class _TracedStreamStream(grpc.aio.StreamStreamClientInterceptor):
    def __init__(self, spans: _Spans) -> None:
        self._spans = spans

    async def intercept_stream_stream(
        self, continuation: _Continuation, client_call_details: _Details, request_iterator: object
    ) -> Any:
        """Many requests, many answers."""
        return await self._spans.call(continuation, client_call_details, request_iterator)
