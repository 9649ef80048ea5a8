"""Structured logging: one event name plus fields, as JSON lines or coloured text on stderr.

Invariants: a log call never waits for the terminal or pipe (a bounded queue and a thread stand
between; when the queue is full events are dropped and counted), every event inside a span carries
its trace and span id, and stdout stays free for a program's own output.
"""

from __future__ import annotations

import atexit
import logging
import logging.handlers
import queue
import sys
import time
from collections.abc import MutableMapping
from typing import Any, Final, TypeAlias, cast

from opentelemetry import trace

# structlog looks for rich, for tracebacks in frames and colours. A daemon's log has no use for
# them, and they are a fifth of its start and some of its memory. Who uses rich has it all the same.
_modules = cast("dict[str, Any]", sys.modules)
_modules.setdefault("rich", None)
import structlog  # noqa: E402

if _modules["rich"] is None:
    del _modules["rich"]

_Event: TypeAlias = MutableMapping[str, Any]

# Some seconds of a very talkative daemon; beyond it a stuck stderr must not stop the data path.
_QUEUE_EVENTS: Final = 10_000
# Libraries whose lower levels tell how they work inside, not what our program does.
_NOISY: Final = ("asyncio", "grpc", "opentelemetry", "sqlalchemy.engine", "urllib3")
# A collector that is away is told of for each batch and each try; one word a minute is enough.
_SPARED: Final = ("opentelemetry.", "urllib3.")
_SPARE_SECONDS: Final = 60.0


class _Sparing(logging.Filter):
    """Lets one record a minute of each spared logger pass, and says how many it held back."""

    def __init__(self) -> None:
        super().__init__()
        self._passed_at: dict[str, float] = {}
        self._held: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        if not record.name.startswith(_SPARED):
            return True
        now = time.monotonic()
        last = self._passed_at.get(record.name)
        if last is not None and now - last < _SPARE_SECONDS:
            self._held[record.name] = self._held.get(record.name, 0) + 1
            return False
        self._passed_at[record.name] = now
        held = self._held.pop(record.name, 0)
        if held:
            record.msg = f"{record.getMessage()} ({held} more like this were held back)"
            record.args = None
        return True


class _DroppingHandler(logging.handlers.QueueHandler):
    """Hands records over as they are and counts those that found the queue full."""

    dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Leaves the record whole: rendering is the listener thread's work."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Never waits and never raises."""
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1


_listener: logging.handlers.QueueListener | None = None


def _add_trace(_logger: object, _method: str, event: _Event) -> _Event:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = format(context.trace_id, "032x")
        event["span_id"] = format(context.span_id, "016x")
    return event


_SHARED: Final[list[Any]] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    _add_trace,
]

# At import, so that a logger of a module works (through the standard library) in programs and
# tests that never call `configure`.
structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level,
        *_SHARED,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
    cache_logger_on_first_use=True,
)


def configure(service: str, *, level: str = "info", json: bool | None = None) -> None:
    """Sends all logging of this process to stderr; `json` defaults to "stderr is no terminal".

    `level` is debug, info, warning or error. May be called again; the last call counts.
    """
    global _listener  # noqa: PLW0603 - logging is one per process
    as_json = not sys.stderr.isatty() if json is None else json

    def add_service(_logger: object, _method: str, event: _Event) -> _Event:
        event["service"] = service
        return event

    tail: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if as_json:
        tail += [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        tail += [structlog.dev.ConsoleRenderer()]
    sink = logging.StreamHandler(sys.stderr)
    sink.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED, processors=[add_service, *tail]
        )
    )
    flush()
    records: queue.Queue[logging.LogRecord] = queue.Queue(_QUEUE_EVENTS)
    _listener = logging.handlers.QueueListener(records, sink)
    _listener.start()
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, _DroppingHandler)]:
        root.removeHandler(handler)
    handed = _DroppingHandler(records)
    handed.addFilter(_Sparing())
    root.addHandler(handed)
    root.setLevel(level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


def flush() -> None:
    """Writes out what is queued and ends the thread; events after it need `configure` again."""
    global _listener  # noqa: PLW0603 - logging is one per process
    if _listener is not None:
        _listener.stop()
        _listener = None


def dropped() -> int:
    """How many events found the queue full since `configure`."""
    return sum(
        each.dropped for each in logging.getLogger().handlers if isinstance(each, _DroppingHandler)
    )


atexit.register(flush)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module: `log.info("region opened", uuid=...)`; a field is never a secret."""
    return cast("structlog.stdlib.BoundLogger", structlog.get_logger(name))
