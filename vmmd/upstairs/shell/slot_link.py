"""One attempt to reach one downstairs: OpenSession, then the data connection, until either ends.

Whatever happens, the owner hears `link_down` exactly once, and nothing after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc
import numpy as np

from stairlib.model.errors import StairwellError, StateError, UnavailableError
from stairlib.model.geometry import Geometry
from stairlib.rpc.channel import open_channel
from stairlib.rpc.errors import translated
from stairlib.rpc.tls import PeerTls, TlsFiles, explained, reach
from stairlib.telemetry.logs import get_logger
from stairlib.telemetry.tracing import Tracing
from stairlib.wire.frame import DATA_VERSION, Bytes, Frame
from stairwell.downstairs.v1 import block_service_pb2 as block_pb
from stairwell.downstairs.v1 import block_service_pb2_grpc as block_grpc
from stairwell.downstairs.v1 import region_service_pb2 as region_pb
from stairwell.downstairs.v1 import region_service_pb2_grpc as region_grpc
from vmmd.upstairs.core.codec import Encryption
from vmmd.upstairs.core.events import ExtentStamps, SessionInfo
from vmmd.upstairs.shell.transport import DataConnection, connect, not_reached

_log = get_logger(__name__)

RPC_SECONDS = 10.0
WELCOME_SECONDS = 10.0
_TLS_REMEDY = (
    "name cert_pem, key_pem and root_cert_pem in the region's opts, or start it without --cert-pem"
)


@dataclass(frozen=True, slots=True)
class SessionWish:
    """What is asked of the daemon. `region_id` empty where any region will do; `tls` None: plain
    text; `encryption` None: the region is not encrypted."""

    link: int
    slot: int
    address: str
    upstairs_id: str
    session_id: str
    generation: int
    region_id: str
    geometry: Geometry
    read_only: bool = False
    encryption: Encryption | None = None
    stream_only: bool = False
    lossy: bool = False
    tls: TlsFiles | None = None


class LinkOwner(Protocol):
    """Who is told."""

    def link_up(self, link: int, session: SessionInfo) -> None:
        """The session stands."""
        ...

    def link_frame(self, link: int, frame: Frame) -> None:
        """A reply has come."""
        ...

    def link_notice(self, link: int, text: str) -> None:
        """The daemon says why it ends the session."""
        ...

    def link_down(self, link: int, reason: str, code: str) -> None:
        """The end. `code` is a refusal's reason, empty otherwise."""
        ...


class SlotLink:
    """See the module; also the `ConnectionEvents` of its data connection."""

    def __init__(self, wish: SessionWish, owner: LinkOwner, tracing: Tracing | None) -> None:
        self._wish = wish
        self._owner = owner
        self._tracing = tracing
        self._loop = asyncio.get_running_loop()
        self._connection: DataConnection | None = None
        self._welcome: asyncio.Future[None] = self._loop.create_future()
        self._up = False
        self._down = False
        self._reason = ""
        self._notice = ""
        # How the daemon is reached, once that is known; None without TLS.
        self.peer: PeerTls | None = None
        self._task = self._loop.create_task(self._open())

    @property
    def address(self) -> str:
        """Of the daemon."""
        return self._wish.address

    # ---- opening

    async def _open(self) -> None:
        wish = self._wish
        reason, code = "", ""
        try:
            if wish.tls is not None:
                self.peer = await reach(wish.address, wish.tls, wish.slot)
            async with open_channel(wish.address, tracing=self._tracing, tls=self.peer) as channel:
                session = await self._negotiate(channel)
                self._owner.link_up(wish.link, session)
                # The channel carries the stream transport: it lives as long as the connection.
                await self._ended()
        except StairwellError as error:
            reason, code = error.message, error.reason
        except TimeoutError:
            reason = not_reached(wish.address, "open the data connection").message
        except OSError as error:
            reason = f"{wish.address}: {error}"
        except asyncio.CancelledError:
            reason = self._reason or "closed"
        except Exception as error:  # noqa: BLE001 - what a daemon answered must not end the process
            _log.exception("a connection broke", address=wish.address)
            reason = f"{wish.address} answered what cannot be used: {error!r}"
        finally:
            self._finish(reason, code)

    async def _negotiate(self, channel: grpc.aio.Channel) -> SessionInfo:
        wish = self._wish
        geometry = wish.geometry
        before = await self._region(channel)
        region_id, key_check = wish.region_id, b""
        if wish.encryption is not None:
            # The check is of the region that was asked about: no other may be opened with it.
            region_id = region_id or before.id
            owner_id = before.owner_id if wish.read_only else wish.upstairs_id
            key_check = wish.encryption.key_check(owner_id)
        with translated(wish.address):
            opened = await block_grpc.BlockServiceStub(channel).OpenSession(
                block_pb.OpenSessionRequest(
                    upstairs_id=wish.upstairs_id,
                    session_id=wish.session_id,
                    generation=wish.generation,
                    read_only=wish.read_only,
                    geometry=region_pb.Geometry(
                        block_size=geometry.block_size,
                        extent_size=geometry.blocks_per_extent,
                        extent_count=geometry.extent_count,
                    ),
                    data_versions=[DATA_VERSION],
                    region_id=region_id,
                    encrypted=wish.encryption is not None,
                    lossy=wish.lossy,
                    key_check=key_check,
                ),
                timeout=RPC_SECONDS,
            )
        check_answer(opened, wish)
        self._connection = await connect(
            opened, channel, self, stream_only=wish.stream_only, tls=self.peer
        )
        async with asyncio.timeout(WELCOME_SECONDS):
            await self._welcome
        self._up = True
        return session_info(opened, owned_before=before.owner_id == wish.upstairs_id)

    async def _region(self, channel: grpc.aio.Channel) -> region_pb.Region:
        """The first question; without TLS, its failure may mean that the daemon wants TLS."""
        wish = self._wish
        try:
            with translated(wish.address):
                answer = await region_grpc.RegionServiceStub(channel).GetRegion(
                    region_pb.GetRegionRequest(), timeout=RPC_SECONDS
                )
        except UnavailableError as error:
            if wish.tls is not None:
                raise
            raise await explained(wish.address, error, _TLS_REMEDY) from error
        return answer.region

    async def _ended(self) -> None:
        await self._loop.create_future()

    def _finish(self, reason: str, code: str) -> None:
        if self._down:
            return
        self._down = True
        if self._connection is not None:
            self._connection.close(reason)
        if self._welcome.done() and not self._welcome.cancelled():
            # Retrieved here, where nobody waits for it any more.
            self._welcome.exception()
        self._owner.link_down(self._wish.link, self._reason or reason, code)

    # ---- use

    def send(self, buffers: Sequence[Bytes]) -> None:
        """Sends a frame, or several one after the other."""
        if self._connection is not None and not self._down:
            self._connection.send(buffers)

    def close(self, reason: str) -> None:
        """Ends the link; `link_down` follows in a later turn."""
        if not self._reason:
            self._reason = reason
            self._task.cancel()

    async def wait_closed(self) -> None:
        """Until everything of the link is gone."""
        await asyncio.gather(self._task, return_exceptions=True)

    # ---- ConnectionEvents

    def welcomed(self) -> None:
        """The daemon has accepted the token."""
        if not self._welcome.done():
            self._welcome.set_result(None)

    def received(self, frame: Frame) -> None:
        """A reply."""
        if self._up and not self._down:
            self._owner.link_frame(self._wish.link, frame)

    def noticed(self, text: str) -> None:
        """The daemon ends the session."""
        self._notice = text
        if not self._down:
            self._owner.link_notice(self._wish.link, text)

    def lost(self, reason: str) -> None:
        """The data connection is gone, and with it the session; a notice says why."""
        reason = self._notice or reason
        if not self._welcome.done():
            self._welcome.set_exception(UnavailableError(f"{self._wish.address}: {reason}"))
        elif not self._down:
            self.close(reason)


def check_answer(opened: block_pb.OpenSessionResponse, wish: SessionWish) -> None:
    """StateError unless the session that was granted is the one that was asked for. The daemon has
    compared the same; one that did not is not talked to."""
    if opened.data_version != DATA_VERSION:
        raise StateError(
            f"{wish.address} chose version {opened.data_version} of the data protocol, "
            f"{DATA_VERSION} was offered: run the same release on both ends",
            reason="VERSION_MISMATCH",
        )
    told = opened.region.geometry
    found = (told.block_size, told.extent_size, told.extent_count)
    geometry = wish.geometry
    wanted = (geometry.block_size, geometry.blocks_per_extent, geometry.extent_count)
    if found != wanted:
        raise StateError(
            f"{wish.address} serves a region of {found[2]} extents of {found[1]} blocks of "
            f"{found[0]} bytes, {geometry.describe()} was asked for: correct the construction "
            "request, or create the region with its geometry",
            reason="GEOMETRY_MISMATCH",
        )


def session_info(opened: block_pb.OpenSessionResponse, *, owned_before: bool) -> SessionInfo:
    """The answer's stamps as arrays, and what is told of the region."""
    stamps = ExtentStamps(
        np.array(opened.extent_generations, dtype=np.uint64),
        np.array(opened.extent_flushes, dtype=np.uint64),
        np.frombuffer(opened.extent_flags, dtype=np.uint8),
    )
    region = opened.region
    return SessionInfo(region.id, stamps, owned_before, region.cipher, region.owner_id)
