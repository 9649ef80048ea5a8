"""The one table between the domain's errors and gRPC, in both directions.

Server side, `rpc_failure` turns any exception into a code, a text and a `google.rpc.Status` with
exactly one `ErrorInfo` (domain "stairwell") and the details that fit its kind. Client side,
`from_rpc_error` gives the same class, reason, metadata and violations back. Invariants: what a
client sees of an exception that is not a `StairwellError` is a generic text; the status always
fits the 8 KiB of metadata that any gRPC client accepts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from stairlib.model.errors import (
    AlreadyExistsError,
    CallRateError,
    ConflictError,
    DataError,
    FieldViolation,
    InvalidRequestError,
    LimitError,
    NotFoundError,
    RefusedError,
    StairwellError,
    StateError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
)
from stairlib.wire.durations import duration, seconds_of

DOMAIN: Final = "stairwell"
INTERNAL_TEXT: Final = "internal error; the daemon's log has the details"

CODES: Final[dict[type[StairwellError], grpc.StatusCode]] = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    StateError: grpc.StatusCode.FAILED_PRECONDITION,
    ConflictError: grpc.StatusCode.ABORTED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    RefusedError: grpc.StatusCode.PERMISSION_DENIED,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    LimitError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnsupportedError: grpc.StatusCode.UNIMPLEMENTED,
    DataError: grpc.StatusCode.DATA_LOSS,
}
_CLASSES: Final = {code: kind for kind, code in CODES.items()}
# Codes that gRPC itself makes and that no domain error maps to.
_LOCAL_REASONS: Final = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "DEADLINE_EXCEEDED",
    grpc.StatusCode.CANCELLED: "CANCELLED",
}

# A gRPC client with default options may refuse trailing metadata above 8 KiB: the text as it
# travels (letters outside ASCII take three bytes for each of theirs) and the status, which holds
# the text once more and may travel in base64, stay below it with room for the other headers.
_MAX_TEXT_BYTES: Final = 1536
_MAX_STATUS_BYTES: Final = 4096
_MAX_VALUE_BYTES: Final = 256
_RETRY_SECONDS: Final = 1
_STATUS_KEY: Final = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class RpcFailure:
    """What to end a call with: code, text for the client, trailing metadata, and the reason."""

    code: grpc.StatusCode
    text: str
    reason: str
    trailing_metadata: tuple[tuple[str, bytes], ...]
    expected: bool
    """False for an exception that is no StairwellError: to be logged with its traceback."""


def as_domain_error(error: BaseException) -> StairwellError | None:
    """The domain error that an exception means, or None if it is an unexpected one.

    A peer's gRPC error that nobody translated counts as what the peer said.
    """
    if isinstance(error, grpc.aio.AioRpcError):
        error = from_rpc_error(error)
    if isinstance(error, StairwellError) and _code_of(error) is not None:
        return error
    return None


def rpc_failure(error: BaseException) -> RpcFailure:
    """Maps any exception; an unexpected one becomes INTERNAL and tells the client nothing."""
    domain = as_domain_error(error)
    if domain is None:
        domain, code, expected = StairwellError(INTERNAL_TEXT), grpc.StatusCode.INTERNAL, False
    else:
        found = _code_of(domain)
        assert found is not None
        code, expected = found, True
    text = _shortened(domain.message, _MAX_TEXT_BYTES)
    status = status_pb2.Status(code=code.value[0], message=text)
    for detail in _details(domain, _MAX_STATUS_BYTES - status.ByteSize()):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return RpcFailure(
        code=code,
        text=text,
        reason=domain.reason,
        trailing_metadata=((_STATUS_KEY, status.SerializeToString()),),
        expected=expected,
    )


def from_rpc_error(error: grpc.aio.AioRpcError) -> StairwellError:
    """The typed error a peer raised, or the nearest one for a failure of the connection itself.

    DEADLINE_EXCEEDED and CANCELLED become `UnavailableError` with that reason; a code outside the
    table becomes a plain `StairwellError`.
    """
    code, text = error.code(), error.details() or error.code().name
    info, violations, retry_seconds = _read_status(error)
    if code in _LOCAL_REASONS:
        return UnavailableError(text, reason=_LOCAL_REASONS[code])
    kind = _CLASSES.get(code)
    if kind is None:
        return StairwellError(text)
    metadata = dict(info.metadata) if info is not None else {}
    if info is not None and info.reason == CallRateError.reason and retry_seconds is not None:
        made: StairwellError = CallRateError(text, retry_seconds)
    else:
        made = _construct(kind, text, violations, metadata)
    made.metadata = metadata
    if info is not None and info.reason:
        made.reason = info.reason
    return made


@contextmanager
def translated(peer: str) -> Iterator[None]:
    """Turns gRPC errors raised inside into domain errors; those of the connection name `peer`.

    `peer` reads like "vmmd at 127.0.0.1:55401".
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise _named(from_rpc_error(error), error, peer) from error
    except grpc.aio.UsageError as error:
        raise UnavailableError(
            f"the connection to {peer} is closed", reason="CHANNEL_CLOSED", peer=peer
        ) from error


def _named(made: StairwellError, error: grpc.aio.AioRpcError, peer: str) -> StairwellError:
    """Says which peer failed, where the peer itself did not say what is wrong."""
    if _read_status(error)[0] is not None:
        return made
    if made.reason == "DEADLINE_EXCEEDED":
        made.message = f"{peer} did not answer in time"
    elif isinstance(made, UnavailableError):
        cause = made.message.rsplit("last error: ", 1)[-1].removeprefix("UNKNOWN: ")
        made.message = f"cannot reach {peer}: {cause}; is it running?"
    else:
        made.message = f"{peer}: {made.message}"
    made.args = (made.message,)
    made.metadata["peer"] = peer
    return made


def _code_of(error: StairwellError) -> grpc.StatusCode | None:
    for kind in type(error).__mro__:
        if kind in CODES:
            return CODES[kind]
    return None


def _shortened(text: str, limit: int) -> str:
    """The longest beginning of `text` that takes at most `limit` bytes in a gRPC header."""
    size = 0
    for index, letter in enumerate(text):
        size += (
            1
            if " " <= letter <= "~" and letter != "%"
            else 3 * len(letter.encode(errors="replace"))
        )
        if size > limit:
            return text[: max(0, index - 9)] + "…"
    return text


def _details(error: StairwellError, room: int) -> list[Any]:
    """The ErrorInfo and what goes with the error's kind, in at most about `room` bytes."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    for key, value in error.metadata.items():
        if info.ByteSize() < room // 2:
            info.metadata[key] = _shortened(str(value), _MAX_VALUE_BYTES)
    detail = _detail(error)
    if detail is None:
        return [info]
    if isinstance(error, InvalidRequestError):
        _fit(info, detail, room)
    return [info, detail]


def _fit(info: Any, request: Any, room: int) -> None:
    """Drops violations from the end until both fit, and says how many are not told in all."""
    # What packing a message and counting what was dropped take themselves.
    room -= info.ByteSize() + 192
    dropped = 0
    size = request.ByteSize()
    while size > room and request.field_violations:
        size -= request.field_violations.pop().ByteSize() + 2
        dropped += 1
    if dropped:
        omitted = int(info.metadata.get("violations_omitted", "0")) + dropped
        info.metadata["violations_omitted"] = str(omitted)


def _detail(error: StairwellError) -> Any | None:
    """The standard detail message for the error's kind, or None."""
    about = _shortened(error.message, _MAX_VALUE_BYTES)
    if isinstance(error, InvalidRequestError):
        request = error_details_pb2.BadRequest()
        for violation in error.violations:
            request.field_violations.add(
                field=_shortened(violation.field, _MAX_VALUE_BYTES),
                description=_shortened(violation.description, 2 * _MAX_VALUE_BYTES),
                reason=violation.reason,
            )
        return request
    if isinstance(error, StateError):
        failure = error_details_pb2.PreconditionFailure()
        subject = str(next(iter(error.metadata.values()), ""))
        failure.violations.add(
            type=error.reason, subject=_shortened(subject, _MAX_VALUE_BYTES), description=about
        )
        return failure
    if isinstance(error, NotFoundError):
        return error_details_pb2.ResourceInfo(
            resource_type=error.metadata.get("kind", ""),
            resource_name=_shortened(error.metadata.get("name", ""), _MAX_VALUE_BYTES),
            description=about,
        )
    if isinstance(error, UnavailableError | CallRateError):
        seconds = error.retry_seconds if isinstance(error, CallRateError) else _RETRY_SECONDS
        return error_details_pb2.RetryInfo(retry_delay=duration(seconds))
    return None


def _read_status(
    error: grpc.aio.AioRpcError,
) -> tuple[Any | None, tuple[FieldViolation, ...], float | None]:
    """Our own ErrorInfo, or None where another domain or no one speaks; the violations; and the
    seconds of a RetryInfo, if there is one."""
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
    except ValueError:  # the status contradicts the call: not ours
        return None, (), None
    info, violations, retry_seconds = None, [], None
    for packed in status.details if status is not None else ():
        if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            found = error_details_pb2.ErrorInfo()
            packed.Unpack(found)
            info = found if found.domain == DOMAIN else info
        elif packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            request = error_details_pb2.BadRequest()
            packed.Unpack(request)
            violations += [
                FieldViolation(each.field, each.description, each.reason or "INVALID")
                for each in request.field_violations
            ]
        elif packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            packed.Unpack(retry)
            retry_seconds = seconds_of(retry.retry_delay)
    return info, tuple(violations), retry_seconds


def _construct(
    kind: type[StairwellError],
    text: str,
    violations: tuple[FieldViolation, ...],
    metadata: dict[str, str],
) -> StairwellError:
    if kind is InvalidRequestError:
        return InvalidRequestError(text, violations)
    if kind is NotFoundError:
        return NotFoundError(metadata.get("kind", ""), metadata.get("name", ""), text)
    return kind(text)
