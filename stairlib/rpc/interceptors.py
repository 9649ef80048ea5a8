"""What every served call goes through: a span, a log line, and the mapping of errors.

Order, from the outside in: tracing, logging, error mapping, the servicer. The mapper always ends a
call by `context.abort`, so the two around it read the true code from the context. Invariants:
health, reflection and trace collection are neither traced nor logged; servicers may be coroutines,
async generators, or generated defaults that are not overridden; a client learns nothing about an
unexpected exception.
"""

from __future__ import annotations

import abc
import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, TypeAlias

import grpc
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from stairlib.model.errors import CallRateError, UnavailableError, UnsupportedError
from stairlib.rpc.errors import rpc_failure
from stairlib.rpc.gate import Gate
from stairlib.telemetry.logs import get_logger
from stairlib.telemetry.tracing import Tracing, context_from

_log = get_logger(__name__)

# Polled by machines, or the reading of traces itself: they would push real traces out of memory.
QUIET_PREFIXES: Final = (
    "/grpc.health.",
    "/grpc.reflection.",
    "/stairwell.telemetry.",
)
REASON_ATTRIBUTE: Final = "error.type"

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Call: TypeAlias = Callable[[], Awaitable[Any]]


class _Around(grpc.aio.ServerInterceptor):
    """Wraps each handler, whatever its kind, in one `around` coroutine."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Gives gRPC the wrapped handler, or None for an unknown method."""
        handler = await continuation(handler_call_details)
        if handler is None or not self.wants(handler_call_details.method):
            return handler
        return _wrapped(handler, self.around, handler_call_details)

    def wants(self, method: str) -> bool:
        """Whether calls of `method` ("/package.Service/Method") are wrapped."""
        return not method.startswith(QUIET_PREFIXES)

    @abc.abstractmethod
    async def around(
        self, details: grpc.HandlerCallDetails, context: _Context, call: _Call
    ) -> object:
        """Awaits `call()` and returns its result; may do something before and after."""


def _wrapped(
    handler: _Handler,
    around: Callable[[grpc.HandlerCallDetails, _Context, _Call], Awaitable[object]],
    details: grpc.HandlerCallDetails,
) -> _Handler:
    """The same handler with `around` about it, always as a coroutine function.

    A stream's messages are written through the context: so the whole call, its generator included,
    runs inside one coroutine and sees one set of context variables.
    """
    kind = (
        f"{'stream' if handler.request_streaming else 'unary'}_"
        f"{'stream' if handler.response_streaming else 'unary'}"
    )
    behaviour = getattr(handler, kind)

    async def unary(request: object, context: _Context) -> object:
        async def call() -> object:
            result = behaviour(request, context)
            return await result if inspect.isawaitable(result) else result

        return await around(details, context, call)

    async def stream(request: object, context: _Context) -> None:
        async def call() -> None:
            result = behaviour(request, context)
            if inspect.isawaitable(result):
                await result
                return
            async with aclosing(result) as messages:
                async for message in messages:
                    await context.write(message)

        await around(details, context, call)

    make = getattr(grpc, f"{kind}_rpc_method_handler")
    made: _Handler = make(
        stream if handler.response_streaming else unary,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return made


def code_number(code: object) -> int:
    """The number of a gRPC status code, which contexts give as an enum, an int, or nothing yet."""
    if isinstance(code, grpc.StatusCode):
        return int(code.value[0])
    return code if isinstance(code, int) else 0


def _outcome(context: _Context, error: BaseException | None) -> int:
    """The status number the client gets for a call that ended with `error`."""
    if isinstance(error, asyncio.CancelledError):
        remaining = context.time_remaining()
        late = remaining is not None and remaining <= 0
        code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
        return code_number(code)
    number = code_number(context.code())
    if error is not None and number == 0:
        return code_number(grpc.StatusCode.UNKNOWN)
    return number


class TracingInterceptor(_Around):
    """One server span per call, continuing the caller's W3C trace."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracer = tracing.tracer

    async def around(
        self, details: grpc.HandlerCallDetails, context: _Context, call: _Call
    ) -> object:
        """Runs the call inside its span and ends the span with the call's status."""
        service, _, name = details.method.lstrip("/").partition("/")
        parent = next(
            (str(value) for key, value in details.invocation_metadata if key == "traceparent"), None
        )
        with self._tracer.start_as_current_span(
            f"{service}/{name}",
            context=context_from(parent),
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            ended: BaseException | None = None
            try:
                return await call()
            except BaseException as error:
                ended = error
                raise
            finally:
                number = _outcome(context, ended)
                # Else the error, its traceback and this frame, with all below it, hold each other.
                ended = None
                set_status(span, number, context.details())


def set_status(span: trace.Span, number: int, text: str | bytes | None) -> None:
    """Writes a call's status into its span; a call that its client gave up is no error."""
    span.set_attribute("rpc.grpc.status_code", number)
    if number not in (0, code_number(grpc.StatusCode.CANCELLED)):
        shown = text.decode(errors="replace") if isinstance(text, bytes) else text
        span.set_status(StatusCode.ERROR, shown or _name(number))


def _name(number: int) -> str:
    return next((code.name for code in grpc.StatusCode if code.value[0] == number), str(number))


class LoggingInterceptor(_Around):
    """One debug event per finished call, with its code and how long it took."""

    async def around(
        self, details: grpc.HandlerCallDetails, context: _Context, call: _Call
    ) -> object:
        """Runs the call and logs how it ended."""
        began = time.monotonic()
        ended: BaseException | None = None
        try:
            return await call()
        except BaseException as error:
            ended = error
            raise
        finally:
            number = _outcome(context, ended)
            # As above.
            ended = None
            _log.debug(
                "call finished",
                method=details.method,
                code=_name(number),
                milliseconds=round((time.monotonic() - began) * 1000, 1),
            )


async def _begun(call: _Call) -> object:
    """The call's result. A peer that finds that we call too often is away for our caller: that the
    same call may be made again is said of calls alone that were not begun here."""
    try:
        return await call()
    except CallRateError as error:
        raise UnavailableError(error.message, reason="PEER_CALL_RATE", **error.metadata) from error


def _meant(error: Exception, context: _Context) -> Exception:
    """A generated method nobody overrode sets its code, then raises something that says less."""
    if code_number(context.code()) == code_number(grpc.StatusCode.UNIMPLEMENTED):
        return UnsupportedError("this daemon does not offer this method")
    return error


class ErrorInterceptor(_Around):
    """Ends a call that raised with the status of `stairlib.rpc.errors`; asks a `gate` first, if
    there is one."""

    def __init__(self, gate: Gate | None = None) -> None:
        self._gate = gate

    def wants(self, method: str) -> bool:
        """Trace collection has errors of its own to map; health and reflection have not, unless
        there is a gate before them."""
        return self._gate is not None or not method.startswith(QUIET_PREFIXES[:2])

    async def around(
        self, details: grpc.HandlerCallDetails, context: _Context, call: _Call
    ) -> object:
        """Runs the call; whatever it raises becomes an abort with rich details."""
        try:
            if self._gate is not None:
                self._gate.admit(details, context)
            return await _begun(call)
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - the boundary: everything is mapped here
            failure = rpc_failure(_meant(error, context))
            if failure.reason == CallRateError.reason:
                # Counted and told together by who refuses them: one line for each would be a flood
                # in the log as well.
                pass
            elif failure.expected:
                _log.info(
                    "call refused",
                    method=details.method,
                    code=failure.code.name,
                    reason=failure.reason,
                    error=failure.text,
                )
            else:
                _log.error("call failed unexpectedly", method=details.method, exc_info=error)
            trace.get_current_span().set_attribute(REASON_ATTRIBUTE, failure.reason)
        return await context.abort(failure.code, failure.text, failure.trailing_metadata)
