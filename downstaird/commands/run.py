"""`downstaird run`: serves a region until it is told to stop."""

from __future__ import annotations

import asyncio

from downstaird import regions
from downstaird.config import RunOptions
from downstaird.core.engine import Engine
from downstaird.daemon import Daemon
from downstaird.metrics import RegionMetrics
from stairlib.runtime import process
from stairlib.runtime.addresses import Address
from stairlib.runtime.memory import keep_freed_buffers
from stairlib.runtime.process import StopSignal
from stairlib.telemetry import logs
from stairlib.telemetry.metrics import Metrics
from stairlib.telemetry.tracing import Tracing

SERVICE = "downstairs"


def run(options: RunOptions, *, level: str, log_format: str) -> int:
    """Serves; the exit status."""
    json = {"json": True, "human": False}.get(log_format)
    logs.configure(SERVICE, level=level, json=json)
    return process.run(lambda stop: _serve(options, stop))


async def _serve(options: RunOptions, stop: StopSignal) -> int:
    engine = _open(options)
    # Not before: what a start leaves unused is better given back.
    keep_freed_buffers()
    host = options.advertise or options.address.host
    name = str(Address(host, options.address.port))
    tracing = Tracing.configure(SERVICE, name)
    metrics = None
    try:
        daemon = Daemon(engine, options, tracing)
        try:
            metrics = Metrics.configure(SERVICE, name, options.metrics)
            RegionMetrics(metrics, daemon.host)
            daemon.guard.observe(metrics)
            await daemon.start()
            # For whoever started us and reads one line; everything else goes to the log.
            print(
                f"ready {daemon.rpc.address} data={daemon.data.port} "
                f"region={engine.definition.id} mode={'ro' if options.read_only else 'rw'}",
                flush=True,
            )
            await stop.event.wait()
        finally:
            if metrics is not None:
                # It may read once more, which the loop answers.
                await asyncio.to_thread(metrics.shutdown)
            await daemon.stop()
    finally:
        tracing.shutdown()
    return 0


def _open(options: RunOptions) -> Engine:
    if options.snapshot:
        return regions.open_snapshot_of(options.directory, options.snapshot)
    if options.create is not None and not regions.is_region(options.directory):
        regions.create_region(options.create)
    engine = regions.open_region(options.directory, read_only=options.read_only)
    if options.create is not None:
        try:
            regions.check_matches(engine, options.create)
        except Exception:
            engine.close()
            raise
    return engine
