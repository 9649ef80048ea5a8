"""News of what other control planes change, for whoever watches here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from uuid import UUID

from controlplane.claims import Claims
from controlplane.core.leases import Kind
from controlplane.core.records import InstanceRecord
from controlplane.core.replacement import Replacement
from controlplane.feed import Feed
from controlplane.store.base import Store
from controlplane.words import Words
from stairlib.model.errors import NotFoundError, StairwellError
from stairlib.telemetry.logs import get_logger

_log = get_logger(__name__)

# Between tries to read what a notice told of.
RETRY_SECONDS = 0.5


class Relay:
    """Reads again what is watched here when the store tells of a change, and publishes it.

    Notices of one record that come while it is read are one more reading: watchers see the newest,
    and the log of a replacement has all that was between.
    """

    def __init__(
        self,
        store: Store,
        claims: Claims,
        words: Words,
        instances: Feed[InstanceRecord],
        replacements: Feed[Replacement],
        disks: Feed[None],
        fleet_changed: Callable[[], None],
    ) -> None:
        self._store = store
        self._claims = claims
        self._words = words
        self._instances = instances
        self._replacements = replacements
        self._disks = disks
        self._fleet_changed = fleet_changed
        self._waiting: set[tuple[str, str]] = set()
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Hears the store from now on."""
        if self._store.lease_seconds is not None:
            self._task = asyncio.create_task(self._run(), name="relay", context=Context())
            self._store.listen(self._hear)

    async def stop(self) -> None:
        """Hears no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _hear(self, kind: str, key: str) -> None:
        if kind == "wish":
            self._words.wake()
        elif kind == "answer":
            self._words.answered(key)
        elif kind == "lease":
            self._claims.wake()
        elif kind == "fleet":
            self._fleet_changed()
        elif kind == "":
            self._fleet_changed()
            self._words.wake()
            self._claims.wake()
            self._wait(*((Kind.INSTANCE, str(each)) for each in self._instances.watched()))
            self._wait(*((Kind.REPLACEMENT, str(each)) for each in self._replacements.watched()))
            self._wait(*(("disk", str(each)) for each in self._disks.watched()))
        else:
            self._wait((kind, key))

    def _wait(self, *changed: tuple[str, str]) -> None:
        self._waiting.update(changed)
        self._woken.set()

    async def _run(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._waiting:
                kind, key = self._waiting.pop()
                try:
                    await self._read(kind, key)
                except ValueError:
                    # Anybody who may use the database may send a notice; this one is no key.
                    continue
                except NotFoundError:
                    self._instances.end(UUID(key))
                except StairwellError as error:
                    _log.warning("news cannot be read", key=key, error=error.message)
                    self._waiting.add((kind, key))
                    await asyncio.sleep(RETRY_SECONDS)

    async def _read(self, kind: str, key: str) -> None:
        """Publishes a record that somebody watches and that is driven elsewhere."""
        identity = UUID(key)
        if kind == Kind.REPLACEMENT and self._replacements.has(identity):
            if self._claims.epoch(Kind.REPLACEMENT, key) is None:
                self._replacements.publish(identity, await self._store.replacement(identity))
        elif kind == Kind.INSTANCE and self._instances.has(identity):
            self._instances.publish(identity, await self._store.instance(key))
        elif kind == "disk":
            self._disks.publish(identity, None)
