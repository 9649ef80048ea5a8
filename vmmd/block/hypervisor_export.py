"""A disk for a hypervisor on a unix socket: listens, and has one connection at a time.

What the two speak over it is a subclass's. Invariant: a socket that another process has put in the
place of ours is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import socket as sockets
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from stairlib.model.errors import UnavailableError
from stairlib.telemetry.logs import get_logger

_log = get_logger(__name__)

# The order of stores in shared memory is that of the program there; elsewhere barriers were needed.
_ORDERED = ("x86_64", "AMD64")


def is_served() -> bool:
    """Whether this host's processors keep the order that shared memory needs."""
    return platform.machine() in _ORDERED


class HypervisorExport(ABC):
    """See the module. A subclass has the protocol's name for people, `begin`s with a connection,
    and calls `ended` when it is over."""

    protocol: ClassVar[str]

    def __init__(self, socket: Path | str) -> None:
        self.path = str(socket)
        self._listener: sockets.socket | None = None
        self._inode = 0
        # Set while no hypervisor is there.
        self.disconnected = asyncio.Event()
        self.disconnected.set()

    @property
    def listening(self) -> bool:
        """Whether it was started."""
        return self._listener is not None

    @property
    def connected(self) -> bool:
        """Whether a hypervisor is there."""
        return not self.disconnected.is_set()

    @abstractmethod
    def begin(self, connection: sockets.socket) -> None:
        """A hypervisor is there; the connection is the subclass's to close."""
        ...

    def ended(self) -> None:
        """It is gone; the next one may come."""
        self.disconnected.set()
        _log.info("hypervisor disconnected", socket=self.path)

    async def start(self) -> None:
        """Listens; UnavailableError when the socket cannot be had."""
        if not is_served():
            raise UnavailableError(
                f"{self.protocol} is not served on {platform.machine()}: use the NBD export",
                reason="UNSUPPORTED",
            )
        listener = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            listener.bind(self.path)
            self._inode = os.stat(self.path).st_ino
            listener.listen(1)
        except OSError as error:
            listener.close()
            raise UnavailableError(
                f"the {self.protocol} export cannot listen on {self.path}: "
                f"{error.strerror or error}",
                reason="PORT_IN_USE",
            ) from error
        listener.setblocking(False)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept)

    def stop_listening(self) -> None:
        """Nobody comes any more; who is there stays."""
        if self._listener is None:
            return
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        self._listener.close()
        self._listener = None
        # Another process may have taken the path over meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self.path).st_ino == self._inode:
                os.unlink(self.path)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _address = self._listener.accept()
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                _log.warning("connection not accepted", reason=error.strerror or str(error))
            return
        if self.connected:
            _log.warning("second hypervisor refused: a disk serves one", socket=self.path)
            connection.close()
            return
        self.disconnected.clear()
        _log.info("hypervisor connected", socket=self.path)
        self.begin(connection)
